// Virtual memory of the stub: addresses are reserved without access, and mapped to memory of a device. See stub.h.
#include "stub.h"
#include <sys/mman.h>

#define GRANULARITY ((size_t)2 << 20)
typedef struct Memory { // what cuMemCreate gives; freed when it is released and nothing maps it
  Head head;
  size_t size;
  int released, mapped;
} Memory;
typedef struct Range { // reserved addresses
  uintptr_t base;
  size_t size;
} Range;
typedef struct Mapping {
  uintptr_t base;
  size_t size;
  Memory *memory;
  int access;
} Mapping;
static Range ranges[4096];
static Mapping mappings[65536];
static size_t n_ranges = 0, n_mappings = 0;

PUBLIC uint64_t stub_ranges(void) { return n_ranges; }
PUBLIC uint64_t stub_mappings(void) { return n_mappings; }

static int ragged(uint64_t n) { return !n || n % GRANULARITY; }
static void free_if_unused(Memory *m) {
  if (m->released && !m->mapped) {
    devices[m->head.device].used -= m->size;
    m->head.alive = 0;
  }
}
PUBLIC CUresult cuMemGetAllocationGranularity(size_t *out, const CUmemAllocationProp *prop,
                                              CUmemAllocationGranularity_flags option) {
  WITH_CONTEXT(cuMemGetAllocationGranularity);
  if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
      prop->location.id < 0 || prop->location.id >= n_devices)
    return CUDA_ERROR_INVALID_VALUE;
  *out = GRANULARITY;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemAddressReserve(CUdeviceptr *out, size_t n, size_t alignment, CUdeviceptr wish, unsigned long long f) {
  WITH_CONTEXT(cuMemAddressReserve);
  if (ragged(n) || f || (alignment & (alignment - 1)))
    return CUDA_ERROR_INVALID_VALUE;
  if (n_ranges == sizeof ranges / sizeof *ranges)
    return CUDA_ERROR_OUT_OF_MEMORY;
  // room to round up to the granularity; the surplus is given back at once
  char *p = mmap(NULL, n + GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return CUDA_ERROR_OUT_OF_MEMORY;
  size_t skip = -(uintptr_t)p % GRANULARITY;
  if (skip)
    munmap(p, skip);
  if (GRANULARITY - skip)
    munmap(p + skip + n, GRANULARITY - skip);
  ranges[n_ranges++] = (Range){(uintptr_t)p + skip, n};
  *out = (CUdeviceptr)(p + skip);
  note(ID_cuMemAddressReserve, 0, *out, n, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemAddressFree(CUdeviceptr ptr, size_t n) {
  WITH_CONTEXT(cuMemAddressFree);
  for (size_t i = 0; i < n_mappings; i++)
    if (mappings[i].base >= ptr && mappings[i].base < ptr + n)
      return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < n_ranges; i++)
    if (ranges[i].base == ptr && ranges[i].size == n) {
      munmap((void *)ptr, n);
      ranges[i] = ranges[--n_ranges];
      note(ID_cuMemAddressFree, 0, ptr, n, 0);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}
PUBLIC CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t n, const CUmemAllocationProp *prop,
                            unsigned long long flags) {
  WITH_CONTEXT(cuMemCreate);
  SAFE_ONLY;
  if (ragged(n) || flags || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || prop->location.id < 0 || prop->location.id >= n_devices)
    return CUDA_ERROR_INVALID_VALUE;
  Device *d = &devices[prop->location.id];
  if (n > d->total || d->used + n > d->total)
    return CUDA_ERROR_OUT_OF_MEMORY;
  d->used += n;
  Memory *m = make(MEMORY, sizeof(Memory), prop->location.id);
  m->size = n;
  *out = (CUmemGenericAllocationHandle)(uintptr_t)m;
  note(ID_cuMemCreate, 0, *out, n, prop->location.id);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  WITH_CONTEXT(cuMemRelease);
  Memory *m = check((void *)(uintptr_t)handle, MEMORY);
  if (!m || m->released)
    return CUDA_ERROR_INVALID_VALUE;
  m->released = 1;
  free_if_unused(m);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemMap(CUdeviceptr ptr, size_t n, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags) {
  WITH_CONTEXT(cuMemMap);
  SAFE_ONLY;
  Memory *m = check((void *)(uintptr_t)handle, MEMORY);
  if (!m || m->released || ragged(n) || ptr % GRANULARITY || offset || flags || n != m->size)
    return CUDA_ERROR_INVALID_VALUE;
  int inside = 0;
  for (size_t i = 0; i < n_ranges; i++)
    inside |= ranges[i].base <= ptr && ptr + n <= ranges[i].base + ranges[i].size;
  for (size_t i = 0; i < n_mappings; i++)
    if (mappings[i].base < ptr + n && ptr < mappings[i].base + mappings[i].size)
      inside = 0;
  if (!inside || n_mappings == sizeof mappings / sizeof *mappings)
    return CUDA_ERROR_INVALID_VALUE;
  m->mapped++;
  mappings[n_mappings++] = (Mapping){ptr, n, m, 0};
  note(ID_cuMemMap, 0, ptr, n, handle);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemSetAccess(CUdeviceptr ptr, size_t n, const CUmemAccessDesc *desc, size_t count) {
  WITH_CONTEXT(cuMemSetAccess);
  SAFE_ONLY;
  if (count != 1 || desc->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
      desc->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < n_mappings; i++) {
    Mapping *map = &mappings[i];
    if (map->base != ptr || map->size != n || map->access)
      continue;
    if (mprotect((void *)ptr, n, PROT_READ | PROT_WRITE))
      return CUDA_ERROR_OUT_OF_MEMORY;
    if (fill)
      memset((void *)ptr, fill, n);
    map->access = 1;
    add_block(ptr, n, map->memory->head.device);
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}
PUBLIC CUresult cuMemUnmap(CUdeviceptr ptr, size_t n) {
  WITH_CONTEXT(cuMemUnmap);
  SAFE_ONLY;
  for (size_t i = 0; i < n_mappings; i++) {
    Mapping map = mappings[i];
    if (map.base != ptr || map.size != n)
      continue;
    if (map.access)
      drop_block(ptr);
    // the pages go, the addresses stay reserved
    mmap((void *)ptr, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    map.memory->mapped--;
    free_if_unused(map.memory);
    mappings[i] = mappings[--n_mappings];
    note(ID_cuMemUnmap, 0, ptr, n, 0);
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}
