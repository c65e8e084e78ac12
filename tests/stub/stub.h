// What the parts of the stub share. The stub is a CUDA driver without a GPU: memory, copies, streams, events, captured
// graphs and modules behave as the driver's documentation says, kernels are checked and recorded but never run.
#pragma once
#define __CUDA_API_VERSION_INTERNAL // all versions of a function under their real names
#include "cuda.h"
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))
#define MAX_DEVICES 8
#define MAX_WORDS 24

// Every function of the driver that the stub has, by the name it is exported under.
#define FUNCTIONS(X)                                                                                                   \
  X(cuInit) X(cuDriverGetVersion) X(cuGetErrorString) X(cuGetErrorName) X(cuGetProcAddress) X(cuGetProcAddress_v2)     \
  X(cuGetExportTable) X(cuProfilerStart) X(cuProfilerStop)                                                             \
  X(cuDeviceGet) X(cuDeviceGetCount) X(cuDeviceGetName) X(cuDeviceGetUuid) X(cuDeviceGetUuid_v2)                       \
  X(cuDeviceTotalMem_v2) X(cuDeviceGetAttribute) X(cuDeviceGetPCIBusId) X(cuDeviceCanAccessPeer)                       \
  X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease_v2) X(cuDevicePrimaryCtxGetState)                            \
  X(cuCtxSetCurrent) X(cuCtxGetCurrent) X(cuCtxPushCurrent_v2) X(cuCtxPopCurrent_v2) X(cuCtxGetDevice)                 \
  X(cuCtxSynchronize) X(cuCtxGetLimit) X(cuCtxSetLimit) X(cuCtxGetStreamPriorityRange) X(cuCtxEnablePeerAccess)        \
  X(cuModuleLoadData) X(cuModuleLoadDataEx) X(cuModuleUnload) X(cuModuleGetFunction) X(cuFuncGetAttribute)             \
  X(cuFuncSetAttribute) X(cuFuncSetCacheConfig) X(cuFuncGetName) X(cuOccupancyMaxActiveBlocksPerMultiprocessor)        \
  X(cuOccupancyMaxActiveClusters) X(cuLaunchKernel) X(cuLaunchKernelEx) X(cuLaunchHostFunc)                            \
  X(cuTensorMapEncodeTiled) X(cuTensorMapEncodeIm2col)                                                                 \
  X(cuMemGetInfo_v2) X(cuMemAlloc_v2) X(cuMemFree_v2) X(cuMemAllocAsync) X(cuMemFreeAsync) X(cuMemAllocHost_v2)        \
  X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemHostRegister_v2) X(cuMemHostUnregister) X(cuMemHostGetDevicePointer_v2)    \
  X(cuMemAddressReserve) X(cuMemAddressFree) X(cuMemCreate) X(cuMemRelease) X(cuMemMap) X(cuMemUnmap)                  \
  X(cuMemSetAccess) X(cuMemGetAllocationGranularity)                                                                   \
  X(cuMemHostGetFlags) X(cuPointerGetAttribute) X(cuPointerGetAttributes) X(cuMemGetAddressRange_v2)                   \
  X(cuMemcpy) X(cuMemcpyAsync) X(cuMemcpyHtoD_v2) X(cuMemcpyHtoDAsync_v2) X(cuMemcpyDtoH_v2) X(cuMemcpyDtoHAsync_v2)   \
  X(cuMemcpyDtoD_v2) X(cuMemcpyDtoDAsync_v2) X(cuMemcpyPeer) X(cuMemcpyPeerAsync)                                      \
  X(cuMemsetD8_v2) X(cuMemsetD16_v2) X(cuMemsetD32_v2) X(cuMemsetD8Async) X(cuMemsetD16Async) X(cuMemsetD32Async)      \
  X(cuStreamCreate) X(cuStreamCreateWithPriority) X(cuStreamDestroy_v2) X(cuStreamSynchronize) X(cuStreamQuery)        \
  X(cuStreamWaitEvent) X(cuStreamGetPriority) X(cuStreamGetFlags) X(cuStreamGetCtx) X(cuStreamGetId)                   \
  X(cuStreamGetDevice) X(cuStreamIsCapturing) X(cuStreamBeginCapture_v2) X(cuStreamEndCapture)                         \
  X(cuStreamGetCaptureInfo_v2) X(cuStreamGetCaptureInfo_v3) X(cuThreadExchangeStreamCaptureMode)                       \
  X(cuEventCreate) X(cuEventDestroy_v2) X(cuEventRecord) X(cuEventRecordWithFlags) X(cuEventQuery)                     \
  X(cuEventSynchronize) X(cuEventElapsedTime) X(cuEventElapsedTime_v2)                                                 \
  X(cuGraphCreate) X(cuGraphDestroy) X(cuGraphGetNodes) X(cuGraphNodeGetType) X(cuGraphInstantiateWithFlags)           \
  X(cuGraphInstantiateWithParams) X(cuGraphExecDestroy) X(cuGraphLaunch) X(cuGraphUpload) X(cuGraphDebugDotPrint)

enum {
#define X(name) ID_##name,
  FUNCTIONS(X)
#undef X
  N_FUNCTIONS
};

typedef enum { STREAM = 1, EVENT, MODULE, FUNCTION, GRAPH, EXEC, CONTEXT, NODE, MEMORY } Kind;
typedef struct {
  uint32_t magic, kind, alive;
  int device;
} Head;

typedef struct Context {
  Head head;
  int retained, peers[MAX_DEVICES];
} Context;

struct Stream;
typedef struct Capture { // one capture: its streams, and what was recorded so far
  int valid, joined, mode;
  pthread_t thread;
  uint64_t id;
  struct Stream *origin;
  struct Graph *graph;
} Capture;

typedef struct Stream {
  Head head;
  unsigned flags;
  int priority;
  uint64_t id;
  unsigned held, epoch; // held: work put on it is not done until it is released or waited for
  struct Event *after;
  Capture *capture;
  uint64_t captured, joined; // operations captured here; how many of them the origin waits for
} Stream;

typedef struct Event {
  Head head;
  unsigned flags;
  int recorded;
  uint64_t at; // nanoseconds
  Stream *on;
  unsigned epoch;
  struct Event *after;
  Capture *capture;
  uint64_t mark;
} Event;

typedef struct Module {
  Head head;
  unsigned char *image;
  size_t size;
} Module;

typedef struct Function {
  Head head;
  Module *module;
  char name[160];
  int n_params;
  int size[256], offset[256];
  int registers, local, fixed_shared, max_dynamic;
} Function;

typedef struct Launch { // as tests/stub/__init__.py reads it
  uint64_t sequence, stream, function;
  const char *name;
  unsigned grid[3], block[3], shared, attributes, device, captured, replayed;
  int n_params;
  uint64_t words[MAX_WORDS];
} Launch;

typedef struct Step { // a node of a graph, and what the log keeps of an operation
  uint32_t id, captured;
  uint64_t stream, a, b, c;
} Step;

typedef struct Node {
  Head head;
  Step step;
  Launch launch;
  Function *function;
} Node;

typedef struct Graph {
  Head head;
  size_t n, room;
  Node **nodes;
} Graph;

typedef struct Device {
  Context *context;
  size_t total, used;
} Device;

extern Device devices[MAX_DEVICES];
extern int n_devices, initialised, attributes[256];
extern __thread Context *current;
extern __thread int capture_mode; // of this thread, for calls that are unsafe in a capture

CUresult enter(int id);
static inline void leave(int *unused) {
  extern pthread_mutex_t lock;
  (void)unused;
  pthread_mutex_unlock(&lock);
}
#define ENTER(name)                                                                                                    \
  CUresult early_ = enter(ID_##name);                                                                                  \
  if (early_)                                                                                                          \
    return early_;                                                                                                     \
  int guard_ __attribute__((cleanup(leave), unused)) = 0
#define WITH_CONTEXT(name)                                                                                             \
  ENTER(name);                                                                                                         \
  if (!current)                                                                                                        \
  return CUDA_ERROR_INVALID_CONTEXT
#define SAFE_ONLY                                                                                                      \
  if (unsafe())                                                                                                        \
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

void *make(Kind kind, size_t size, int device);
void *check(const void *handle, Kind kind); // NULL where it is no living handle of that kind
void note(int id, uint64_t stream, uint64_t a, uint64_t b, uint64_t c);
void note_captured(int id, uint64_t stream, uint64_t a, uint64_t b, uint64_t c);
uint64_t now(void);

int unsafe(void); // a capture forbids this thread the call; the capture is spoilt
CUresult on_stream(CUstream handle, Stream **out); // the stream of an operation, NULL for the legacy stream
CUresult record(Stream *stream, CUstream handle, Step step); // do an operation now, or put it into the capture
CUresult perform(const Step *step); // copy or fill memory
void put_launch(const Launch *launch);
void keep_node(Stream *stream, Node *node);
int device_range(CUdeviceptr ptr, size_t n);
void add_block(uintptr_t base, size_t size, int device);
int drop_block(uintptr_t base); // 0 where no block starts there
extern int fill;                // what fresh device memory holds
CUresult replay_event(Event *event, Stream *stream);
