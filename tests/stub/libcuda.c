// Devices, contexts, errors, the table of functions, and what tests set and read (stub_*). See stub.h.
#include "stub.h"
#include <time.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Device devices[MAX_DEVICES];
int n_devices = 1, initialised = 0, version = 13010, peer_access = 1, init_result = 0;
__thread Context *current = NULL;
__thread int capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static __thread Context *stack[16];
static __thread int depth = 0;
int attributes[256];
static int forked = 0;
static const char *names[] = {
#define X(name) #name,
    FUNCTIONS(X)
#undef X
};

// ---- counts, injected errors, the log -------------------------------------------------------------------------------
static struct {
  uint64_t count;
  int code, skip, times;
} calls[N_FUNCTIONS];
#define LOG 65536
static Step steps[LOG];
static uint64_t n_steps = 0;

CUresult enter(int id) {
  pthread_mutex_lock(&lock);
  calls[id].count++;
  CUresult result = CUDA_SUCCESS;
  if (calls[id].times) {
    if (calls[id].skip > 0)
      calls[id].skip--;
    else {
      calls[id].times--;
      result = calls[id].code;
    }
  }
  int early = id <= ID_cuProfilerStop;
  if (!result && !early && (!initialised || forked))
    result = CUDA_ERROR_NOT_INITIALIZED;
  if (result)
    pthread_mutex_unlock(&lock);
  return result;
}

static void keep_step(int id, int captured, uint64_t stream, uint64_t a, uint64_t b, uint64_t c) {
  steps[n_steps++ % LOG] = (Step){id, captured, stream, a, b, c};
}
void note(int id, uint64_t stream, uint64_t a, uint64_t b, uint64_t c) { keep_step(id, 0, stream, a, b, c); }
void note_captured(int id, uint64_t stream, uint64_t a, uint64_t b, uint64_t c) { keep_step(id, 1, stream, a, b, c); }

uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

// ---- handles: never reused, so that a dead one is recognised --------------------------------------------------------
#define ARENA ((size_t)1 << 30)
static char arena[ARENA] __attribute__((aligned(64)));
static size_t arena_used = 64;

void *make(Kind kind, size_t size, int device) {
  size = (size + 63) & ~(size_t)63;
  if (arena_used + size > ARENA)
    abort(); // a test that makes millions of handles
  Head *head = (Head *)(arena + arena_used);
  arena_used += size;
  *head = (Head){0x57ab1e, kind, 1, device};
  return head;
}

void *check(const void *handle, Kind kind) {
  uintptr_t at = (uintptr_t)handle, low = (uintptr_t)arena;
  if (at < low + 64 || at >= low + arena_used || at % 64)
    return NULL;
  Head *head = (Head *)handle;
  return head->magic == 0x57ab1e && head->kind == kind && head->alive ? head : NULL;
}

// ---- set and read by tests ------------------------------------------------------------------------------------------
static int find(const char *name) {
  for (int i = 0; i < N_FUNCTIONS; i++)
    if (!strcmp(names[i], name))
      return i;
  return -1;
}
PUBLIC int stub_fail(const char *name, int code, int skip, int times) {
  int id = find(name);
  if (id < 0)
    return -1;
  calls[id].code = code, calls[id].skip = skip, calls[id].times = times;
  return 0;
}
PUBLIC int64_t stub_count(const char *name) {
  int id = find(name);
  return id < 0 ? -1 : (int64_t)calls[id].count;
}
PUBLIC void stub_devices(int count) { n_devices = count < 0 ? 0 : count > MAX_DEVICES ? MAX_DEVICES : count; }
PUBLIC void stub_total(int device, uint64_t bytes) { devices[device].total = bytes; }
PUBLIC uint64_t stub_used(int device) { return devices[device].used; }
PUBLIC void stub_attribute(int which, int value) { attributes[which] = value; }
PUBLIC void stub_version(int value) { version = value; }
PUBLIC void stub_peer_access(int value) { peer_access = value; }
PUBLIC int stub_retained(int device) { return devices[device].context ? devices[device].context->retained : 0; }
PUBLIC uint64_t stub_steps(Step *out, uint64_t since, uint64_t room) {
  uint64_t first = n_steps > LOG ? n_steps - LOG : 0, n = 0;
  for (uint64_t i = since > first ? since : first; i < n_steps && n < room; i++)
    out[n++] = steps[i % LOG];
  return n;
}
PUBLIC uint64_t stub_n_steps(void) { return n_steps; }
PUBLIC const char *stub_name(int id) { return id >= 0 && id < N_FUNCTIONS ? names[id] : ""; }

static void in_child(void) { forked = initialised; }

__attribute__((constructor)) static void set_up(void) {
  pthread_atfork(NULL, NULL, in_child);
  for (int i = 0; i < MAX_DEVICES; i++)
    devices[i].total = (size_t)4 << 30;
  for (int i = 0; i < 256; i++)
    attributes[i] = 1;
#define SET(name, value) attributes[CU_DEVICE_ATTRIBUTE_##name] = value
  SET(COMPUTE_CAPABILITY_MAJOR, 9), SET(COMPUTE_CAPABILITY_MINOR, 0), SET(MULTIPROCESSOR_COUNT, 132), SET(WARP_SIZE, 32);
  SET(MAX_SHARED_MEMORY_PER_BLOCK, 49152), SET(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448);
  SET(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 233472), SET(MAX_REGISTERS_PER_BLOCK, 65536);
  SET(MAX_THREADS_PER_BLOCK, 1024), SET(MAX_THREADS_PER_MULTIPROCESSOR, 2048), SET(CLOCK_RATE, 1980000);
  SET(MEMORY_CLOCK_RATE, 3201000), SET(GLOBAL_MEMORY_BUS_WIDTH, 6144), SET(L2_CACHE_SIZE, 62914560);
  SET(INTEGRATED, 0), SET(ECC_ENABLED, 1), SET(PCI_BUS_ID, 1), SET(PCI_DEVICE_ID, 0), SET(PCI_DOMAIN_ID, 0);
#undef SET
}

// ---- the driver ----------------------------------------------------------------------------------------------------
PUBLIC CUresult cuInit(unsigned flags) {
  ENTER(cuInit);
  if (flags)
    return CUDA_ERROR_INVALID_VALUE;
  if (forked)
    return CUDA_ERROR_NOT_INITIALIZED;
  if (!n_devices)
    return CUDA_ERROR_NO_DEVICE;
  initialised = 1;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDriverGetVersion(int *out) {
  ENTER(cuDriverGetVersion);
  *out = version;
  return CUDA_SUCCESS;
}

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
#define E(name, text) {CUDA_ERROR_##name, "CUDA_ERROR_" #name, text},
    {0, "CUDA_SUCCESS", "no error"},
    E(INVALID_VALUE, "invalid argument")                                                        //
    E(OUT_OF_MEMORY, "out of memory")                                                           //
    E(NOT_INITIALIZED, "initialization error")                                                  //
    E(DEINITIALIZED, "driver shutting down")                                                    //
    E(STUB_LIBRARY, "CUDA driver is a stub library")                                            //
    E(NO_DEVICE, "no CUDA-capable device is detected")                                          //
    E(INVALID_DEVICE, "invalid device ordinal")                                                 //
    E(INVALID_IMAGE, "device kernel image is invalid")                                          //
    E(INVALID_CONTEXT, "invalid device context")                                                //
    E(NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device")            //
    E(PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices")        //
    E(INVALID_PTX, "a PTX JIT compilation failed")                                              //
    E(UNSUPPORTED_PTX_VERSION, "the provided PTX was compiled with an unsupported toolchain.")  //
    E(INVALID_HANDLE, "invalid resource handle")                                                //
    E(NOT_FOUND, "named symbol not found")                                                      //
    E(NOT_READY, "device not ready")                                                            //
    E(ILLEGAL_ADDRESS, "an illegal memory access was encountered")                              //
    E(LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")                       //
    E(LAUNCH_TIMEOUT, "the launch timed out and was terminated")                                //
    E(PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled")                            //
    E(PRIMARY_CONTEXT_ACTIVE, "cannot set while device is active in this process")              //
    E(CONTEXT_IS_DESTROYED, "context is destroyed")                                             //
    E(ASSERT, "device-side assert triggered")                                                   //
    E(HOST_MEMORY_ALREADY_REGISTERED, "part or all of the memory range is already registered")  //
    E(HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region")  //
    E(MISALIGNED_ADDRESS, "misaligned address")                                                 //
    E(LAUNCH_FAILED, "unspecified launch failure")                                              //
    E(NOT_PERMITTED, "operation not permitted")                                                 //
    E(NOT_SUPPORTED, "operation not supported")                                                 //
    E(SYSTEM_NOT_READY, "system not yet initialized")                                           //
    E(SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination") //
    E(STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")           //
    E(STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture")    //
    E(STREAM_CAPTURE_UNMATCHED, "capture was not initiated in this stream")                     //
    E(STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work")                            //
    E(STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream")      //
    E(STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream") //
    E(STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread") //
    E(UNKNOWN, "unknown error")
#undef E
};
#define N_ERRORS (sizeof errors / sizeof *errors)
static CUresult describe(CUresult code, const char **out, int text) {
  for (size_t i = 0; i < N_ERRORS; i++)
    if (errors[i].code == (int)code) {
      *out = text ? errors[i].text : errors[i].name;
      return CUDA_SUCCESS;
    }
  *out = NULL;
  return CUDA_ERROR_INVALID_VALUE;
}
PUBLIC CUresult cuGetErrorString(CUresult code, const char **out) { return describe(code, out, 1); }
PUBLIC CUresult cuGetErrorName(CUresult code, const char **out) { return describe(code, out, 0); }
PUBLIC CUresult cuGetExportTable(const void **out, const CUuuid *id) { return CUDA_ERROR_NOT_SUPPORTED; }
PUBLIC CUresult cuProfilerStart(void) {
  ENTER(cuProfilerStart);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuProfilerStop(void) {
  ENTER(cuProfilerStop);
  return CUDA_SUCCESS;
}

#define X(name) extern __typeof__(name) name;
extern CUresult cuGetProcAddress_v2(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);
extern CUresult cuEventElapsedTime_v2(float *, CUevent, CUevent);
extern CUresult cuStreamGetCaptureInfo_v3(CUstream, CUstreamCaptureStatus *, cuuint64_t *, CUgraph *,
                                          const CUgraphNode **, const CUgraphEdgeData **, size_t *);
extern CUresult cuDeviceGetUuid_v2(CUuuid *, CUdevice);
extern CUresult cuStreamGetDevice(CUstream, CUdevice *);
#undef X
static void *const addresses[] = {
#define X(name) (void *)name,
    FUNCTIONS(X)
#undef X
};
// Of several versions of a function: the newest that the asked version of CUDA has.
static const struct {
  int id, since;
} newer[] = {{ID_cuGetProcAddress_v2, 12000},        {ID_cuEventElapsedTime_v2, 12080},
             {ID_cuStreamGetCaptureInfo_v3, 12030}, {ID_cuStreamGetCaptureInfo_v2, 11030},
             {ID_cuDeviceGetUuid_v2, 11040}};
PUBLIC CUresult cuGetProcAddress_v2(const char *symbol, void **out, int asked, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status) {
  size_t n = strlen(symbol);
  int found = find(symbol);
  for (int i = 0; found < 0 && i < N_FUNCTIONS; i++)
    if (!strncmp(names[i], symbol, n) && !strncmp(names[i] + n, "_v", 2))
      found = i;
  for (size_t i = 0; i < sizeof newer / sizeof *newer; i++)
    if (asked >= newer[i].since && !strncmp(names[newer[i].id], symbol, n) && names[newer[i].id][n] == '_') {
      found = newer[i].id;
      break;
    }
  *out = found < 0 ? NULL : addresses[found];
  if (status)
    *status = found < 0 ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND : CU_GET_PROC_ADDRESS_SUCCESS;
  return found < 0 ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}
PUBLIC CUresult cuGetProcAddress(const char *symbol, void **out, int asked, cuuint64_t flags) {
  return cuGetProcAddress_v2(symbol, out, asked, flags, NULL);
}

// ---- devices -------------------------------------------------------------------------------------------------------
#define DEVICE(d)                                                                                                      \
  if ((d) < 0 || (d) >= n_devices)                                                                                     \
  return CUDA_ERROR_INVALID_DEVICE
PUBLIC CUresult cuDeviceGet(CUdevice *out, int ordinal) {
  ENTER(cuDeviceGet);
  DEVICE(ordinal);
  *out = ordinal;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetCount(int *out) {
  ENTER(cuDeviceGetCount);
  *out = n_devices;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetName(char *out, int room, CUdevice d) {
  ENTER(cuDeviceGetName);
  DEVICE(d);
  snprintf(out, room, "Stub GPU %d", d);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetUuid_v2(CUuuid *out, CUdevice d) {
  ENTER(cuDeviceGetUuid_v2);
  DEVICE(d);
  memset(out, 0, sizeof *out);
  out->bytes[0] = 0x57, out->bytes[15] = d;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetUuid(CUuuid *out, CUdevice d) { return cuDeviceGetUuid_v2(out, d); }
PUBLIC CUresult cuDeviceTotalMem_v2(size_t *out, CUdevice d) {
  ENTER(cuDeviceTotalMem_v2);
  DEVICE(d);
  *out = devices[d].total;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute which, CUdevice d) {
  ENTER(cuDeviceGetAttribute);
  DEVICE(d);
  if ((int)which <= 0 || (int)which >= 256)
    return CUDA_ERROR_INVALID_VALUE;
  *out = attributes[which];
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetPCIBusId(char *out, int room, CUdevice d) {
  ENTER(cuDeviceGetPCIBusId);
  DEVICE(d);
  snprintf(out, room, "0000:%02x:00.0", d + 1);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceCanAccessPeer(int *out, CUdevice a, CUdevice b) {
  ENTER(cuDeviceCanAccessPeer);
  DEVICE(a);
  DEVICE(b);
  *out = a != b && peer_access;
  return CUDA_SUCCESS;
}

// ---- contexts ------------------------------------------------------------------------------------------------------
PUBLIC CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice d) {
  ENTER(cuDevicePrimaryCtxRetain);
  DEVICE(d);
  if (!devices[d].context)
    devices[d].context = make(CONTEXT, sizeof(Context), d);
  devices[d].context->retained++;
  *out = (CUcontext)devices[d].context;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
  ENTER(cuDevicePrimaryCtxRelease_v2);
  DEVICE(d);
  if (!devices[d].context || !devices[d].context->retained)
    return CUDA_ERROR_INVALID_CONTEXT;
  devices[d].context->retained--;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) {
  ENTER(cuDevicePrimaryCtxGetState);
  DEVICE(d);
  *flags = 0;
  *active = devices[d].context && devices[d].context->retained;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxSetCurrent(CUcontext context) {
  ENTER(cuCtxSetCurrent);
  if (context && !check(context, CONTEXT))
    return CUDA_ERROR_INVALID_CONTEXT;
  current = (Context *)context;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxGetCurrent(CUcontext *out) {
  ENTER(cuCtxGetCurrent);
  *out = (CUcontext)current;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxPushCurrent_v2(CUcontext context) {
  ENTER(cuCtxPushCurrent_v2);
  if (!check(context, CONTEXT) || depth == 16)
    return CUDA_ERROR_INVALID_CONTEXT;
  stack[depth++] = current;
  current = (Context *)context;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxPopCurrent_v2(CUcontext *out) {
  ENTER(cuCtxPopCurrent_v2);
  if (!depth)
    return CUDA_ERROR_INVALID_CONTEXT;
  if (out)
    *out = (CUcontext)current;
  current = stack[--depth];
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxGetDevice(CUdevice *out) {
  WITH_CONTEXT(cuCtxGetDevice);
  *out = current->head.device;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxGetLimit(size_t *out, CUlimit which) {
  WITH_CONTEXT(cuCtxGetLimit);
  *out = 1 << 20;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxSetLimit(CUlimit which, size_t value) {
  WITH_CONTEXT(cuCtxSetLimit);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  WITH_CONTEXT(cuCtxGetStreamPriorityRange);
  if (least)
    *least = 0;
  if (greatest)
    *greatest = -5;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  WITH_CONTEXT(cuCtxEnablePeerAccess);
  Context *other = check(peer, CONTEXT);
  if (!other || other == current || flags)
    return CUDA_ERROR_INVALID_CONTEXT;
  if (!peer_access)
    return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  if (current->peers[other->head.device]++)
    return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  return CUDA_SUCCESS;
}
