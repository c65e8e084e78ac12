// Modules and launches of the stub: the parameters of a kernel are read from its cubin, a launch is checked against the
// device's limits and recorded. Nothing runs. See stub.h.
#include "stub.h"
#include <elf.h>

#define RING 8192
static Launch launches[RING];
static uint64_t n_launches = 0;
static int loaded = 0;

PUBLIC uint64_t stub_n_launches(void) { return n_launches; }
PUBLIC uint64_t stub_launches(Launch *out, uint64_t since, uint64_t room) {
  uint64_t first = n_launches > RING ? n_launches - RING : 0, n = 0;
  for (uint64_t i = since > first ? since : first; i < n_launches && n < room; i++)
    out[n++] = launches[i % RING];
  return n;
}
PUBLIC int stub_loaded(void) { return loaded; }

void put_launch(const Launch *launch) {
  Launch *slot = &launches[n_launches % RING];
  *slot = *launch;
  slot->sequence = n_launches++;
}

// ---- modules ---------------------------------------------------------------------------------------------------------
static const Elf64_Ehdr *elf(const unsigned char *image) {
  return memcmp(image, ELFMAG, SELFMAG) == 0 && image[EI_CLASS] == ELFCLASS64 ? (const Elf64_Ehdr *)image : NULL;
}
static const Elf64_Shdr *section(const unsigned char *image, const char *name) {
  const Elf64_Ehdr *header = elf(image);
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *strings = (const char *)image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; i++)
    if (!strcmp(strings + sections[i].sh_name, name))
      return &sections[i];
  return NULL;
}
static size_t image_size(const unsigned char *image) {
  const Elf64_Ehdr *header = elf(image);
  if (!header)
    return 0;
  size_t end = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  size_t programs = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
  if (programs > end)
    end = programs;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  for (int i = 0; i < header->e_shnum; i++)
    if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
      end = sections[i].sh_offset + sections[i].sh_size;
  return end;
}
static CUresult load(CUmodule *out, const void *image) {
  size_t size = image ? image_size(image) : 0;
  if (!size)
    return CUDA_ERROR_INVALID_IMAGE;
  unsigned flags = elf(image)->e_flags, sm = flags >> 24 ? flags >> 8 & 0xff : flags & 0xff;
  if (sm / 10 != (unsigned)attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] ||
      sm % 10 > (unsigned)attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR])
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  Module *m = make(MODULE, sizeof(Module), current->head.device);
  m->image = malloc(size);
  m->size = size;
  memcpy(m->image, image, size);
  loaded++;
  *out = (CUmodule)m;
  note(ID_cuModuleLoadData, 0, (uint64_t)m, size, current->head.device);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuModuleLoadData(CUmodule *out, const void *image) {
  WITH_CONTEXT(cuModuleLoadData);
  SAFE_ONLY;
  return load(out, image);
}
PUBLIC CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n, CUjit_option *options, void **values) {
  WITH_CONTEXT(cuModuleLoadDataEx);
  SAFE_ONLY;
  return load(out, image);
}
PUBLIC CUresult cuModuleUnload(CUmodule handle) {
  WITH_CONTEXT(cuModuleUnload);
  SAFE_ONLY;
  Module *m = check(handle, MODULE);
  if (!m)
    return CUDA_ERROR_INVALID_HANDLE;
  m->head.alive = 0; // its functions are recognised as dead through it
  loaded--;
  note(ID_cuModuleUnload, 0, (uint64_t)m, 0, 0);
  return CUDA_SUCCESS;
}

// What the attribute records of an .nv.info section say: parameters, registers, local memory. A module of Triton's has
// one kernel, so that whose registers they are is not asked.
static void read_info(Function *f, const unsigned char *image, const Elf64_Shdr *info) {
  const unsigned char *at = image + info->sh_offset, *end = at + info->sh_size;
  while (at + 4 <= end) {
    int format = at[0], attribute = at[1], length = at[2] | at[3] << 8;
    const unsigned char *value = at + 4;
    if (format != 4) { // the value lies in the record itself
      at += 4;
      continue;
    }
    if (attribute == 0x17 && length >= 12) { // index, ordinal and offset, size in bits 18 and up
      int ordinal = value[4] | value[5] << 8;
      uint32_t packed;
      memcpy(&packed, value + 8, 4);
      if (ordinal < 256) {
        f->size[ordinal] = packed >> 18;
        f->offset[ordinal] = value[6] | value[7] << 8;
        if (ordinal + 1 > f->n_params)
          f->n_params = ordinal + 1;
      }
    }
    int number = 0;
    if (length == 8)
      memcpy(&number, value + 4, 4);
    if (attribute == 0x2f && length == 8 && number > f->registers)
      f->registers = number;
    if (attribute == 0x11 && length == 8 && number > f->local)
      f->local = number;
    at = value + length;
  }
}
PUBLIC CUresult cuModuleGetFunction(CUfunction *out, CUmodule handle, const char *name) {
  WITH_CONTEXT(cuModuleGetFunction);
  Module *m = check(handle, MODULE);
  if (!m)
    return CUDA_ERROR_INVALID_HANDLE;
  char wanted[256];
  snprintf(wanted, sizeof wanted, ".text.%s", name);
  if (!section(m->image, wanted))
    return CUDA_ERROR_NOT_FOUND;
  Function *f = make(FUNCTION, sizeof(Function), m->head.device);
  f->module = m;
  f->max_dynamic = 49152;
  snprintf(f->name, sizeof f->name, "%s", name);
  const Elf64_Shdr *found = section(m->image, ".nv.info");
  if (found)
    read_info(f, m->image, found);
  snprintf(wanted, sizeof wanted, ".nv.info.%s", name);
  if ((found = section(m->image, wanted)))
    read_info(f, m->image, found);
  snprintf(wanted, sizeof wanted, ".nv.shared.%s", name);
  if ((found = section(m->image, wanted)))
    f->fixed_shared = (int)found->sh_size;
  f->max_dynamic -= f->fixed_shared;
  *out = (CUfunction)f;
  note(ID_cuModuleGetFunction, 0, (uint64_t)f, (uint64_t)m, 0);
  return CUDA_SUCCESS;
}
static Function *function(CUfunction handle) {
  Function *f = check(handle, FUNCTION);
  if (f && !f->module->head.alive)
    f->head.alive = 0;
  return f && f->head.alive ? f : NULL;
}
PUBLIC CUresult cuFuncGetName(const char **out, CUfunction handle) {
  ENTER(cuFuncGetName);
  Function *f = function(handle);
  if (!f)
    return CUDA_ERROR_INVALID_HANDLE;
  *out = f->name;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuFuncGetAttribute(int *out, CUfunction_attribute which, CUfunction handle) {
  ENTER(cuFuncGetAttribute);
  Function *f = function(handle);
  if (!f)
    return CUDA_ERROR_INVALID_HANDLE;
  switch ((int)which) {
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    *out = 1024;
    break;
  case CU_FUNC_ATTRIBUTE_NUM_REGS:
    *out = f->registers;
    break;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    *out = f->local;
    break;
  case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    *out = f->fixed_shared;
    break;
  case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
    *out = f->max_dynamic;
    break;
  default:
    *out = 0;
  }
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  ENTER(cuFuncSetAttribute);
  Function *f = function(handle);
  if (!f)
    return CUDA_ERROR_INVALID_HANDLE;
  note(ID_cuFuncSetAttribute, 0, (uint64_t)f, which, (uint64_t)(int64_t)value);
  if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    int most = attributes[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN];
    if (value < 0 || value > most - f->fixed_shared)
      return CUDA_ERROR_INVALID_VALUE;
    f->max_dynamic = value;
    return CUDA_SUCCESS;
  }
  return (int)which < CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE + 1 ? CUDA_SUCCESS
                                                                                 : CUDA_ERROR_INVALID_VALUE;
}
PUBLIC CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache value) {
  ENTER(cuFuncSetCacheConfig);
  return function(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
PUBLIC CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *out, CUfunction handle, int block, size_t shared) {
  WITH_CONTEXT(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  if (!function(handle) || block <= 0)
    return CUDA_ERROR_INVALID_VALUE;
  *out = 2048 / block < 1 ? 1 : 2048 / block;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuOccupancyMaxActiveClusters(int *out, CUfunction handle, const CUlaunchConfig *config) {
  WITH_CONTEXT(cuOccupancyMaxActiveClusters);
  *out = 1;
  return function(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// ---- launches --------------------------------------------------------------------------------------------------------
static CUresult start(CUfunction handle, const unsigned grid[3], const unsigned block[3], unsigned shared,
                      CUstream stream, unsigned n_attributes, void **params) {
  Function *f = function(handle);
  Stream *s;
  if (!f)
    return CUDA_ERROR_INVALID_HANDLE;
  if (f->head.device != current->head.device)
    return CUDA_ERROR_INVALID_CONTEXT;
  CUresult r = on_stream(stream, &s);
  if (r)
    return r;
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535)
    return CUDA_ERROR_INVALID_VALUE;
  if (!block[0] || !block[1] || !block[2] || block[0] > 1024 || block[0] * block[1] * block[2] > 1024)
    return CUDA_ERROR_INVALID_VALUE;
  if ((int)shared > f->max_dynamic)
    return CUDA_ERROR_INVALID_VALUE;
  if (f->n_params > 0 && !params)
    return CUDA_ERROR_INVALID_VALUE;
  Launch launch = {0, (uint64_t)stream, (uint64_t)handle, f->name};
  memcpy(launch.grid, grid, 12);
  memcpy(launch.block, block, 12);
  launch.shared = shared;
  launch.attributes = n_attributes;
  launch.device = f->head.device;
  launch.captured = s && s->capture;
  launch.n_params = f->n_params;
  for (int i = 0; i < f->n_params && i < MAX_WORDS; i++)
    memcpy(&launch.words[i], params[i], f->size[i] < 8 ? f->size[i] : 8);
  if (launch.captured) {
    Node *node = make(NODE, sizeof(Node), f->head.device);
    node->step = (Step){ID_cuLaunchKernelEx, 1, (uint64_t)stream, (uint64_t)handle, 0, 0};
    node->launch = launch;
    node->function = f;
    keep_node(s, node);
  }
  put_launch(&launch);
  note(ID_cuLaunchKernelEx, (uint64_t)stream, (uint64_t)handle, n_launches - 1, launch.captured);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
  WITH_CONTEXT(cuLaunchKernelEx);
  unsigned grid[] = {c->gridDimX, c->gridDimY, c->gridDimZ}, block[] = {c->blockDimX, c->blockDimY, c->blockDimZ};
  return start(f, grid, block, c->sharedMemBytes, c->hStream, c->numAttrs, params);
}
PUBLIC CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared, CUstream stream, void **params, void **extra) {
  WITH_CONTEXT(cuLaunchKernel);
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return start(f, grid, block, shared, stream, 0, params);
}
PUBLIC CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *data) {
  WITH_CONTEXT(cuLaunchHostFunc);
  Stream *s;
  CUresult r = on_stream(stream, &s);
  if (r)
    return r;
  if (s && s->capture)
    return record(s, stream, (Step){ID_cuLaunchHostFunc, 0, (uint64_t)stream, (uint64_t)fn, (uint64_t)data, 0});
  note(ID_cuLaunchHostFunc, (uint64_t)stream, (uint64_t)fn, (uint64_t)data, 0);
  fn(data);
  return CUDA_SUCCESS;
}

// ---- descriptors of tensors ------------------------------------------------------------------------------------------
PUBLIC CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                       const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                       const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                       CUtensorMapFloatOOBfill outside) {
  ENTER(cuTensorMapEncodeTiled);
  if (!rank || rank > 5 || (uintptr_t)address % 16)
    return CUDA_ERROR_INVALID_VALUE;
  for (cuuint32_t i = 0; i + 1 < rank; i++)
    if (strides[i] % 16 || !box[i] || box[i] > 256)
      return CUDA_ERROR_INVALID_VALUE;
  memset(map, 0, sizeof *map);
  memcpy(map, &address, sizeof address);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                        const cuuint64_t *sizes, const cuuint64_t *strides, const int *low,
                                        const int *high, cuuint32_t channels, cuuint32_t pixels,
                                        const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                        CUtensorMapFloatOOBfill outside) {
  ENTER(cuTensorMapEncodeIm2col);
  memset(map, 0, sizeof *map);
  memcpy(map, &address, sizeof address);
  return CUDA_SUCCESS;
}
