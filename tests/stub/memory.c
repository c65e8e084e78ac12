// Memory of the stub: device memory comes from malloc within a limit, copies and fills are done. See stub.h.
#include "stub.h"
#include <sys/mman.h>

typedef struct Block {
  uintptr_t base;
  size_t size;
  int device; // -1: page-locked host memory, -2: registered host memory
} Block;
static Block *blocks; // sorted by base
static size_t n_blocks, room;
int fill = 0;
static size_t host_used = 0;
#define MAPPED ((size_t)1 << 20)

PUBLIC void stub_fill(int byte) { fill = byte; } // what fresh device memory holds
PUBLIC uint64_t stub_blocks(int device) {
  uint64_t n = 0;
  for (size_t i = 0; i < n_blocks; i++)
    n += blocks[i].device == device;
  return n;
}

static size_t place(uintptr_t at) { // index of the first block above `at`
  size_t low = 0, high = n_blocks;
  while (low < high) {
    size_t mid = (low + high) / 2;
    if (blocks[mid].base <= at)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}
static Block *holding(uintptr_t at) {
  size_t i = place(at);
  return i && at < blocks[i - 1].base + (blocks[i - 1].size ? blocks[i - 1].size : 1) ? &blocks[i - 1] : NULL;
}
static void add(Block b) {
  if (n_blocks == room)
    blocks = realloc(blocks, (room = room ? 2 * room : 1024) * sizeof *blocks);
  size_t i = place(b.base);
  memmove(blocks + i + 1, blocks + i, (n_blocks - i) * sizeof *blocks);
  blocks[i] = b;
  n_blocks++;
}
static void drop(Block *b) {
  memmove(b, b + 1, (blocks + n_blocks - (b + 1)) * sizeof *b);
  n_blocks--;
}
int device_range(CUdeviceptr ptr, size_t n) {
  if (!n)
    return 1;
  for (uintptr_t at = ptr;;) { // mapped memory may lie in several blocks in a row
    Block *b = holding(at);
    if (!b)
      return 0;
    if (ptr + n <= b->base + b->size)
      return 1;
    at = b->base + b->size;
  }
}
void add_block(uintptr_t base, size_t size, int device) { add((Block){base, size, device}); }
int drop_block(uintptr_t base) {
  Block *b = holding(base);
  if (!b || b->base != base)
    return 0;
  drop(b);
  return 1;
}

static void *fresh(size_t n, int byte) {
  if (n >= MAPPED) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
      return NULL;
    if (byte)
      memset(p, byte, n);
    return p;
  }
  void *p = NULL;
  if (posix_memalign(&p, 512, n))
    return NULL;
  return memset(p, byte, n);
}
static void give_back(void *p, size_t n) {
  if (n >= MAPPED)
    munmap(p, n);
  else
    free(p);
}
static size_t rounded(size_t n) { return (n + 511) & ~(size_t)511; }

static CUresult take(CUdeviceptr *out, size_t n) {
  Device *d = &devices[current->head.device];
  if (!n || !out)
    return CUDA_ERROR_INVALID_VALUE;
  if (n > d->total || d->used + rounded(n) > d->total)
    return CUDA_ERROR_OUT_OF_MEMORY;
  void *p = fresh(rounded(n), fill);
  if (!p)
    return CUDA_ERROR_OUT_OF_MEMORY;
  d->used += rounded(n);
  add((Block){(uintptr_t)p, n, current->head.device});
  *out = (CUdeviceptr)p;
  return CUDA_SUCCESS;
}
static CUresult release(CUdeviceptr ptr) {
  if (!ptr)
    return CUDA_SUCCESS;
  Block *b = holding(ptr);
  if (!b || b->base != ptr || b->device < 0)
    return CUDA_ERROR_INVALID_VALUE;
  devices[b->device].used -= rounded(b->size);
  size_t n = rounded(b->size);
  drop(b);
  give_back((void *)ptr, n);
  return CUDA_SUCCESS;
}

PUBLIC CUresult cuMemGetInfo_v2(size_t *free_out, size_t *total_out) {
  WITH_CONTEXT(cuMemGetInfo_v2);
  Device *d = &devices[current->head.device];
  *free_out = d->total - d->used;
  *total_out = d->total;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t n) {
  WITH_CONTEXT(cuMemAlloc_v2);
  SAFE_ONLY;
  CUresult r = take(out, n);
  if (!r)
    note(ID_cuMemAlloc_v2, 0, *out, n, current->head.device);
  return r;
}
PUBLIC CUresult cuMemFree_v2(CUdeviceptr ptr) {
  WITH_CONTEXT(cuMemFree_v2);
  SAFE_ONLY;
  CUresult r = release(ptr);
  if (!r)
    note(ID_cuMemFree_v2, 0, ptr, 0, 0);
  return r;
}
PUBLIC CUresult cuMemAllocAsync(CUdeviceptr *out, size_t n, CUstream handle) {
  WITH_CONTEXT(cuMemAllocAsync);
  Stream *stream;
  CUresult r = on_stream(handle, &stream);
  if (!r && stream && stream->capture) // memory nodes of graphs are not modelled
    r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!r)
    r = take(out, n);
  if (!r)
    note(ID_cuMemAllocAsync, (uint64_t)handle, *out, n, 0);
  return r;
}
PUBLIC CUresult cuMemFreeAsync(CUdeviceptr ptr, CUstream handle) {
  WITH_CONTEXT(cuMemFreeAsync);
  Stream *stream;
  CUresult r = on_stream(handle, &stream);
  if (!r && stream && stream->capture)
    r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!r)
    r = release(ptr);
  if (!r)
    note(ID_cuMemFreeAsync, (uint64_t)handle, ptr, 0, 0);
  return r;
}

// ---- host memory ---------------------------------------------------------------------------------------------------
static CUresult take_host(void **out, size_t n) {
  if (!n)
    return CUDA_ERROR_INVALID_VALUE;
  void *p = fresh(rounded(n), 0);
  if (!p)
    return CUDA_ERROR_OUT_OF_MEMORY;
  host_used += n;
  add((Block){(uintptr_t)p, n, -1});
  *out = p;
  return CUDA_SUCCESS;
}
PUBLIC uint64_t stub_host_used(void) { return host_used; }
PUBLIC CUresult cuMemHostAlloc(void **out, size_t n, unsigned flags) {
  WITH_CONTEXT(cuMemHostAlloc);
  SAFE_ONLY;
  CUresult r = take_host(out, n);
  if (!r)
    note(ID_cuMemHostAlloc, 0, (uint64_t)*out, n, flags);
  return r;
}
PUBLIC CUresult cuMemAllocHost_v2(void **out, size_t n) {
  WITH_CONTEXT(cuMemAllocHost_v2);
  SAFE_ONLY;
  CUresult r = take_host(out, n);
  if (!r)
    note(ID_cuMemAllocHost_v2, 0, (uint64_t)*out, n, 0);
  return r;
}
PUBLIC CUresult cuMemFreeHost(void *p) {
  WITH_CONTEXT(cuMemFreeHost);
  SAFE_ONLY;
  Block *b = holding((uintptr_t)p);
  if (!b || b->base != (uintptr_t)p || b->device != -1)
    return CUDA_ERROR_INVALID_VALUE;
  size_t n = b->size;
  host_used -= n;
  drop(b);
  give_back(p, rounded(n));
  note(ID_cuMemFreeHost, 0, (uint64_t)p, n, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemHostRegister_v2(void *p, size_t n, unsigned flags) {
  WITH_CONTEXT(cuMemHostRegister_v2);
  if (!p || !n)
    return CUDA_ERROR_INVALID_VALUE;
  if (holding((uintptr_t)p))
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  add((Block){(uintptr_t)p, n, -2});
  note(ID_cuMemHostRegister_v2, 0, (uint64_t)p, n, flags);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemHostUnregister(void *p) {
  WITH_CONTEXT(cuMemHostUnregister);
  Block *b = holding((uintptr_t)p);
  if (!b || b->base != (uintptr_t)p || b->device != -2)
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  drop(b);
  note(ID_cuMemHostUnregister, 0, (uint64_t)p, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *p, unsigned flags) {
  WITH_CONTEXT(cuMemHostGetDevicePointer_v2);
  Block *b = holding((uintptr_t)p);
  if (!b || b->device >= 0)
    return CUDA_ERROR_INVALID_VALUE;
  *out = (CUdeviceptr)p;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemHostGetFlags(unsigned *out, void *p) {
  WITH_CONTEXT(cuMemHostGetFlags);
  Block *b = holding((uintptr_t)p);
  if (!b || b->device >= 0)
    return CUDA_ERROR_INVALID_VALUE;
  *out = 0;
  return CUDA_SUCCESS;
}

// ---- what a pointer is -----------------------------------------------------------------------------------------------
static CUresult ask(void *out, CUpointer_attribute which, CUdeviceptr ptr) {
  Block *b = holding(ptr);
  if (!b)
    return CUDA_ERROR_INVALID_VALUE;
  switch ((int)which) {
  case CU_POINTER_ATTRIBUTE_CONTEXT:
    *(CUcontext *)out = b->device < 0 ? NULL : (CUcontext)devices[b->device].context;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    *(unsigned *)out = b->device < 0 ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    *(CUdeviceptr *)out = ptr;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    if (b->device >= 0)
      return CUDA_ERROR_INVALID_VALUE;
    *(void **)out = (void *)ptr;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    *(int *)out = 0;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    *(int *)out = b->device < 0 ? 0 : b->device;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    *(CUdeviceptr *)out = b->base;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    *(size_t *)out = b->size;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    *(uint64_t *)out = b->base;
    return CUDA_SUCCESS;
  default:
    return CUDA_ERROR_INVALID_VALUE;
  }
}
PUBLIC CUresult cuPointerGetAttribute(void *out, CUpointer_attribute which, CUdeviceptr ptr) {
  WITH_CONTEXT(cuPointerGetAttribute);
  return ask(out, which, ptr);
}
PUBLIC CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute *which, void **out, CUdeviceptr ptr) {
  WITH_CONTEXT(cuPointerGetAttributes);
  for (unsigned i = 0; i < n; i++)
    if (ask(out[i], which[i], ptr)) // unknown pointers answer with zeros here
      memset(out[i], 0, which[i] == CU_POINTER_ATTRIBUTE_CONTEXT || which[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER ? 8 : 4);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr ptr) {
  WITH_CONTEXT(cuMemGetAddressRange_v2);
  Block *b = holding(ptr);
  if (!b)
    return CUDA_ERROR_NOT_FOUND;
  if (base)
    *base = b->base;
  if (size)
    *size = b->size;
  return CUDA_SUCCESS;
}

// ---- copies and fills: Step.a is the target, b the source or the value, c the bytes -----------------------------------
CUresult perform(const Step *s) {
  switch (s->id) {
  case ID_cuMemsetD8Async:
    memset((void *)s->a, (int)s->b, s->c);
    return CUDA_SUCCESS;
  case ID_cuMemsetD16Async:
    for (uint64_t i = 0; i < s->c / 2; i++)
      ((uint16_t *)s->a)[i] = (uint16_t)s->b;
    return CUDA_SUCCESS;
  case ID_cuMemsetD32Async:
    for (uint64_t i = 0; i < s->c / 4; i++)
      ((uint32_t *)s->a)[i] = (uint32_t)s->b;
    return CUDA_SUCCESS;
  default:
    memmove((void *)s->a, (void *)s->b, s->c);
    return CUDA_SUCCESS;
  }
}
static CUresult asynchronous(int id, CUdeviceptr to, uint64_t from, size_t n, CUstream handle) {
  Stream *stream;
  CUresult r = on_stream(handle, &stream);
  return r ? r : record(stream, handle, (Step){id, 0, (uint64_t)handle, to, from, n});
}
static CUresult at_once(int id, CUdeviceptr to, uint64_t from, size_t n) {
  if (unsafe())
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  note(id, 0, to, from, n);
  Step s = {id, 0, 0, to, from, n};
  return perform(&s);
}
#define RANGE(ptr, n)                                                                                                  \
  if (!device_range(ptr, n))                                                                                           \
  return CUDA_ERROR_INVALID_VALUE
PUBLIC CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) {
  WITH_CONTEXT(cuMemcpy);
  return at_once(ID_cuMemcpy, to, from, n);
}
PUBLIC CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  WITH_CONTEXT(cuMemcpyAsync);
  return asynchronous(ID_cuMemcpyAsync, to, from, n, s);
}
PUBLIC CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
  WITH_CONTEXT(cuMemcpyHtoD_v2);
  RANGE(to, n);
  return at_once(ID_cuMemcpyHtoD_v2, to, (uint64_t)from, n);
}
PUBLIC CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream s) {
  WITH_CONTEXT(cuMemcpyHtoDAsync_v2);
  RANGE(to, n);
  return asynchronous(ID_cuMemcpyHtoDAsync_v2, to, (uint64_t)from, n, s);
}
PUBLIC CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
  WITH_CONTEXT(cuMemcpyDtoH_v2);
  RANGE(from, n);
  return at_once(ID_cuMemcpyDtoH_v2, (CUdeviceptr)to, from, n);
}
PUBLIC CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) {
  WITH_CONTEXT(cuMemcpyDtoHAsync_v2);
  RANGE(from, n);
  return asynchronous(ID_cuMemcpyDtoHAsync_v2, (CUdeviceptr)to, from, n, s);
}
PUBLIC CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
  WITH_CONTEXT(cuMemcpyDtoD_v2);
  RANGE(to, n);
  RANGE(from, n);
  return at_once(ID_cuMemcpyDtoD_v2, to, from, n);
}
PUBLIC CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  WITH_CONTEXT(cuMemcpyDtoDAsync_v2);
  RANGE(to, n);
  RANGE(from, n);
  return asynchronous(ID_cuMemcpyDtoDAsync_v2, to, from, n, s);
}
#define PEERS                                                                                                          \
  RANGE(to, n);                                                                                                        \
  RANGE(from, n);                                                                                                      \
  Context *there = check(to_context, CONTEXT), *here = check(from_context, CONTEXT);                                   \
  if (!there || !here)                                                                                                 \
    return CUDA_ERROR_INVALID_CONTEXT;                                                                                 \
  if (n && (holding(to)->device != there->head.device || holding(from)->device != here->head.device))                  \
  return CUDA_ERROR_INVALID_VALUE
PUBLIC CUresult cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t n) {
  WITH_CONTEXT(cuMemcpyPeer);
  PEERS;
  return at_once(ID_cuMemcpyPeer, to, from, n);
}
PUBLIC CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                                  size_t n, CUstream s) {
  WITH_CONTEXT(cuMemcpyPeerAsync);
  PEERS;
  return asynchronous(ID_cuMemcpyPeerAsync, to, from, n, s);
}
#define FILL(bits, type)                                                                                               \
  PUBLIC CUresult cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t n) {                                         \
    WITH_CONTEXT(cuMemsetD##bits##_v2);                                                                                \
    RANGE(to, n * sizeof value);                                                                                       \
    return at_once(ID_cuMemsetD##bits##Async, to, value, n * sizeof value);                                            \
  }                                                                                                                    \
  PUBLIC CUresult cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t n, CUstream s) {                           \
    WITH_CONTEXT(cuMemsetD##bits##Async);                                                                              \
    if (to % sizeof value)                                                                                             \
      return CUDA_ERROR_INVALID_VALUE;                                                                                 \
    RANGE(to, n * sizeof value);                                                                                       \
    return asynchronous(ID_cuMemsetD##bits##Async, to, value, n * sizeof value, s);                                    \
  }
FILL(8, unsigned char)
FILL(16, unsigned short)
FILL(32, unsigned int)
