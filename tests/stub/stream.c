// Streams, events, capture and graphs of the stub. Work is done when it is issued; a stream that a test holds
// (stub_hold) reports its work as not done until it is released or waited for. See stub.h.
#include "stub.h"

#define MAX_STREAMS 4096
static Stream *streams[MAX_STREAMS];
static int n_streams = 0;
static uint64_t next_id = 1;
static Stream legacy[MAX_DEVICES]; // state of stream 0, only for events

// ---- capture ---------------------------------------------------------------------------------------------------------
static Capture *captures[256];
static int n_captures = 0;

static void spoil(Capture *c) { c->valid = 0; }
static void forget(Capture *c) { // the capture itself stays: events may still point to it
  c->valid = 0;
  for (int i = 0; i < n_captures; i++)
    if (captures[i] == c)
      captures[i] = captures[--n_captures];
}

int unsafe(void) {
  if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
    return 0;
  for (int i = 0; i < n_captures; i++) {
    Capture *c = captures[i];
    int mine = pthread_equal(c->thread, pthread_self());
    if (c->mode == CU_STREAM_CAPTURE_MODE_RELAXED)
      continue;
    if (mine || (c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL)) {
      spoil(c);
      return 1;
    }
  }
  return 0;
}

CUresult on_stream(CUstream handle, Stream **out) {
  *out = NULL;
  if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
    for (int i = 0; i < n_streams; i++) { // blocking streams and the legacy stream wait for each other
      Stream *s = streams[i];
      if (s->head.alive && s->capture && !(s->flags & CU_STREAM_NON_BLOCKING)) {
        spoil(s->capture);
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
    }
    return CUDA_SUCCESS;
  }
  Stream *s = check(handle, STREAM);
  if (!s)
    return CUDA_ERROR_INVALID_HANDLE;
  if (s->head.device != current->head.device)
    return CUDA_ERROR_INVALID_CONTEXT;
  if (s->capture && !s->capture->valid)
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *out = s;
  return CUDA_SUCCESS;
}

void keep_node(Stream *s, Node *node) {
  Graph *g = s->capture->graph;
  if (g->n == g->room)
    g->nodes = realloc(g->nodes, (g->room = g->room ? 2 * g->room : 64) * sizeof *g->nodes);
  g->nodes[g->n++] = node;
  s->captured++;
}

CUresult record(Stream *s, CUstream handle, Step step) {
  if (s && s->capture) {
    Node *node = make(NODE, sizeof(Node), s->head.device);
    node->step = step;
    node->step.captured = 1;
    keep_node(s, node);
    note_captured(step.id, step.stream, step.a, step.b, step.c);
    return CUDA_SUCCESS;
  }
  note(step.id, step.stream, step.a, step.b, step.c);
  return perform(&step);
}

// ---- streams ---------------------------------------------------------------------------------------------------------
static int pending(Event *e) {
  if (!e || !e->recorded)
    return 0;
  return (e->on && e->on->held && e->epoch == e->on->epoch) || (e->after && pending(e->after));
}
static int busy(Stream *s) { return s && (s->held || pending(s->after)); }
static void finish(Stream *s) {
  if (!s)
    return;
  if (s->held)
    s->held = 0, s->epoch++;
  if (pending(s->after))
    finish(s->after->on);
  s->after = NULL;
}

static CUresult create(CUstream *out, unsigned flags, int priority) {
  if (flags & ~CU_STREAM_NON_BLOCKING)
    return CUDA_ERROR_INVALID_VALUE;
  Stream *s = make(STREAM, sizeof(Stream), current->head.device);
  s->flags = flags;
  s->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
  s->id = next_id++;
  if (n_streams == MAX_STREAMS) { // forget the dead ones
    int kept = 0;
    for (int i = 0; i < n_streams; i++)
      if (streams[i]->head.alive)
        streams[kept++] = streams[i];
    n_streams = kept;
    if (kept == MAX_STREAMS)
      return CUDA_ERROR_OUT_OF_MEMORY;
  }
  streams[n_streams++] = s;
  *out = (CUstream)s;
  note(ID_cuStreamCreate, (uint64_t)s, flags, (uint64_t)(int64_t)s->priority, s->head.device);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamCreate(CUstream *out, unsigned flags) {
  WITH_CONTEXT(cuStreamCreate);
  return create(out, flags, 0);
}
PUBLIC CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority) {
  WITH_CONTEXT(cuStreamCreateWithPriority);
  return create(out, flags, priority);
}
PUBLIC int stub_hold(uint64_t handle) { // 0: no such stream
  Stream *s = check((void *)handle, STREAM);
  if (s)
    s->held = 1;
  return s != NULL;
}
PUBLIC int stub_release(uint64_t handle) {
  Stream *s = check((void *)handle, STREAM);
  if (s && s->held)
    s->held = 0, s->epoch++;
  return s != NULL;
}
PUBLIC int stub_alive(uint64_t handle) {
  for (Kind k = STREAM; k <= NODE; k++)
    if (check((void *)handle, k))
      return k;
  return 0;
}
#define LIVING(s, handle)                                                                                              \
  Stream *s = NULL;                                                                                                    \
  if ((uintptr_t)handle > 2 && !(s = check(handle, STREAM)))                                                           \
  return CUDA_ERROR_INVALID_HANDLE
PUBLIC CUresult cuStreamDestroy_v2(CUstream handle) {
  WITH_CONTEXT(cuStreamDestroy_v2);
  Stream *s = check(handle, STREAM);
  if (!s)
    return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) {
    spoil(s->capture);
    if (s->capture->origin == s)
      forget(s->capture);
  }
  s->head.alive = 0;
  note(ID_cuStreamDestroy_v2, (uint64_t)handle, 0, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamSynchronize(CUstream handle) {
  WITH_CONTEXT(cuStreamSynchronize);
  Stream *s;
  CUresult r = on_stream(handle, &s);
  if (r)
    return r;
  if (s && s->capture) {
    spoil(s->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (!s && unsafe())
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  finish(s);
  note(ID_cuStreamSynchronize, (uint64_t)handle, 0, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamQuery(CUstream handle) {
  WITH_CONTEXT(cuStreamQuery);
  Stream *s;
  CUresult r = on_stream(handle, &s);
  if (r)
    return r;
  if (s && s->capture) {
    spoil(s->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return busy(s) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxSynchronize(void) {
  WITH_CONTEXT(cuCtxSynchronize);
  for (int i = 0; i < n_streams; i++)
    if (streams[i]->head.alive && streams[i]->capture && streams[i]->head.device == current->head.device) {
      spoil(streams[i]->capture);
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  for (int i = 0; i < n_streams; i++)
    if (streams[i]->head.alive && streams[i]->head.device == current->head.device)
      finish(streams[i]);
  note(ID_cuCtxSynchronize, 0, current->head.device, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamGetPriority(CUstream handle, int *out) {
  ENTER(cuStreamGetPriority);
  LIVING(s, handle);
  *out = s ? s->priority : 0;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamGetFlags(CUstream handle, unsigned *out) {
  ENTER(cuStreamGetFlags);
  LIVING(s, handle);
  *out = s ? s->flags : 0;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamGetId(CUstream handle, unsigned long long *out) {
  ENTER(cuStreamGetId);
  LIVING(s, handle);
  *out = s ? s->id : 0;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamGetCtx(CUstream handle, CUcontext *out) {
  ENTER(cuStreamGetCtx);
  LIVING(s, handle);
  *out = s ? (CUcontext)devices[s->head.device].context : (CUcontext)current;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamGetDevice(CUstream handle, CUdevice *out) {
  ENTER(cuStreamGetDevice);
  LIVING(s, handle);
  if (!s && !current)
    return CUDA_ERROR_INVALID_CONTEXT;
  *out = s ? s->head.device : current->head.device;
  return CUDA_SUCCESS;
}

// ---- events ----------------------------------------------------------------------------------------------------------
PUBLIC CUresult cuEventCreate(CUevent *out, unsigned flags) {
  WITH_CONTEXT(cuEventCreate);
  if (flags & ~7u)
    return CUDA_ERROR_INVALID_VALUE;
  Event *e = make(EVENT, sizeof(Event), current->head.device);
  e->flags = flags;
  *out = (CUevent)e;
  note(ID_cuEventCreate, 0, (uint64_t)e, flags, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventDestroy_v2(CUevent handle) {
  ENTER(cuEventDestroy_v2);
  Event *e = check(handle, EVENT);
  if (!e)
    return CUDA_ERROR_INVALID_HANDLE;
  e->head.alive = 0;
  note(ID_cuEventDestroy_v2, 0, (uint64_t)e, 0, 0);
  return CUDA_SUCCESS;
}
static CUresult record_event(CUevent handle, CUstream stream, unsigned flags) {
  Event *e = check(handle, EVENT);
  Stream *s;
  CUresult r = on_stream(stream, &s);
  if (r)
    return r;
  if (!e || e->head.device != current->head.device)
    return CUDA_ERROR_INVALID_HANDLE;
  if (s && s->capture) {
    if (flags & CU_EVENT_RECORD_EXTERNAL) { // a node that records the event at every replay
      r = record(s, stream, (Step){ID_cuEventRecord, 0, (uint64_t)stream, (uint64_t)e, 0, 0});
      return r;
    }
    e->capture = s->capture;
    e->mark = s->captured;
    e->on = s;
    note_captured(ID_cuEventRecord, (uint64_t)stream, (uint64_t)e, 0, 0);
    return CUDA_SUCCESS;
  }
  note(ID_cuEventRecord, (uint64_t)stream, (uint64_t)e, 0, 0);
  return replay_event(e, s);
}
CUresult replay_event(Event *e, Stream *s) {
  e->capture = NULL;
  e->recorded = 1;
  e->at = now();
  e->on = s ? s : &legacy[e->head.device];
  e->epoch = e->on->epoch;
  e->after = s ? s->after : NULL;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventRecord(CUevent handle, CUstream stream) {
  WITH_CONTEXT(cuEventRecord);
  return record_event(handle, stream, 0);
}
PUBLIC CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned flags) {
  WITH_CONTEXT(cuEventRecordWithFlags);
  return record_event(handle, stream, flags);
}
PUBLIC CUresult cuEventQuery(CUevent handle) {
  ENTER(cuEventQuery);
  Event *e = check(handle, EVENT);
  if (!e)
    return CUDA_ERROR_INVALID_HANDLE;
  if (unsafe() || e->capture) {
    if (e->capture)
      spoil(e->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return pending(e) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
PUBLIC CUresult cuEventSynchronize(CUevent handle) {
  ENTER(cuEventSynchronize);
  Event *e = check(handle, EVENT);
  if (!e)
    return CUDA_ERROR_INVALID_HANDLE;
  if (e->capture) {
    spoil(e->capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (pending(e))
    finish(e->on);
  note(ID_cuEventSynchronize, 0, (uint64_t)e, 0, 0);
  return CUDA_SUCCESS;
}
static CUresult elapsed(float *out, CUevent first, CUevent last) {
  Event *a = check(first, EVENT), *b = check(last, EVENT);
  if (!a || !b || !a->recorded || !b->recorded || (a->flags | b->flags) & CU_EVENT_DISABLE_TIMING)
    return CUDA_ERROR_INVALID_HANDLE;
  if (pending(a) || pending(b))
    return CUDA_ERROR_NOT_READY;
  *out = (float)((double)((int64_t)b->at - (int64_t)a->at) / 1e6);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventElapsedTime(float *out, CUevent first, CUevent last) {
  ENTER(cuEventElapsedTime);
  return elapsed(out, first, last);
}
PUBLIC CUresult cuEventElapsedTime_v2(float *out, CUevent first, CUevent last) {
  ENTER(cuEventElapsedTime_v2);
  return elapsed(out, first, last);
}
PUBLIC CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
  WITH_CONTEXT(cuStreamWaitEvent);
  Event *e = check(event, EVENT);
  Stream *s;
  CUresult r = on_stream(handle, &s);
  if (r)
    return r;
  if (!e)
    return CUDA_ERROR_INVALID_HANDLE;
  if (e->capture) { // the event joins this stream to the capture, or this stream back to its origin
    Capture *c = e->capture;
    if (!s)
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (s->capture && s->capture != c) {
      spoil(c), spoil(s->capture);
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (!s->capture) {
      s->capture = c;
      s->captured = 1; // the wait itself must be joined back
      s->joined = 0;
    } else if (e->on != s && e->on->joined < e->mark)
      e->on->joined = e->mark;
    note_captured(ID_cuStreamWaitEvent, (uint64_t)handle, (uint64_t)e, 0, 0);
    return CUDA_SUCCESS;
  }
  if (s && s->capture && e->recorded && !(flags & CU_EVENT_WAIT_EXTERNAL)) {
    spoil(s->capture);
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  if (s && pending(e) && e->on != s)
    s->after = e;
  note(ID_cuStreamWaitEvent, (uint64_t)handle, (uint64_t)e, 0, 0);
  return CUDA_SUCCESS;
}

// ---- capture ---------------------------------------------------------------------------------------------------------
PUBLIC CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  WITH_CONTEXT(cuStreamBeginCapture_v2);
  if ((uintptr_t)handle <= 2)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; // the legacy stream cannot be captured
  Stream *s = check(handle, STREAM);
  if (!s || s->head.device != current->head.device)
    return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture)
    return CUDA_ERROR_ILLEGAL_STATE;
  if (n_captures == 256)
    return CUDA_ERROR_OUT_OF_MEMORY;
  Capture *c = calloc(1, sizeof *c);
  *c = (Capture){1, 0, mode, pthread_self(), next_id++, s, make(GRAPH, sizeof(Graph), s->head.device)};
  captures[n_captures++] = c;
  s->capture = c;
  s->captured = s->joined = 0;
  note(ID_cuStreamBeginCapture_v2, (uint64_t)handle, mode, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamEndCapture(CUstream handle, CUgraph *out) {
  WITH_CONTEXT(cuStreamEndCapture);
  Stream *s = check(handle, STREAM);
  *out = NULL;
  if (!s)
    return CUDA_ERROR_INVALID_HANDLE;
  Capture *c = s->capture;
  if (!c)
    return CUDA_ERROR_ILLEGAL_STATE;
  if (c->origin != s)
    return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(c->thread, pthread_self()))
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  CUresult r = c->valid ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (int i = 0; i < n_streams; i++)
    if (streams[i]->head.alive && streams[i]->capture == c) {
      if (streams[i] != s && streams[i]->joined < streams[i]->captured && !r)
        r = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
      streams[i]->capture = NULL;
    }
  forget(c);
  if (!r)
    *out = (CUgraph)c->graph;
  note(ID_cuStreamEndCapture, (uint64_t)handle, (uint64_t)*out, r, 0);
  return r;
}
static CUresult info(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph) {
  LIVING(s, handle);
  if (!s && unsafe()) // asking about the legacy stream while a global capture runs
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  Capture *c = s ? s->capture : NULL;
  *status = !c ? CU_STREAM_CAPTURE_STATUS_NONE
               : c->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  if (c && id)
    *id = c->id;
  if (c && graph)
    *graph = (CUgraph)c->graph;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *out) {
  ENTER(cuStreamIsCapturing);
  return info(handle, out, NULL, NULL);
}
PUBLIC CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                          CUgraph *graph, const CUgraphNode **dependencies, size_t *n) {
  ENTER(cuStreamGetCaptureInfo_v2);
  if (n)
    *n = 0;
  return info(handle, status, id, graph);
}
PUBLIC CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                          CUgraph *graph, const CUgraphNode **dependencies,
                                          const CUgraphEdgeData **edges, size_t *n) {
  ENTER(cuStreamGetCaptureInfo_v3);
  if (n)
    *n = 0;
  return info(handle, status, id, graph);
}
PUBLIC CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
  ENTER(cuThreadExchangeStreamCaptureMode);
  int before = capture_mode;
  capture_mode = *mode;
  *mode = before;
  return CUDA_SUCCESS;
}

// ---- graphs ----------------------------------------------------------------------------------------------------------
PUBLIC CUresult cuGraphCreate(CUgraph *out, unsigned flags) {
  ENTER(cuGraphCreate);
  *out = make(GRAPH, sizeof(Graph), current ? current->head.device : 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphDestroy(CUgraph handle) {
  ENTER(cuGraphDestroy);
  Graph *g = check(handle, GRAPH);
  if (!g)
    return CUDA_ERROR_INVALID_VALUE;
  g->head.alive = 0;
  note(ID_cuGraphDestroy, 0, (uint64_t)handle, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *out, size_t *n) {
  ENTER(cuGraphGetNodes);
  Graph *g = check(handle, GRAPH);
  if (!g)
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; out && i < *n; i++)
    out[i] = i < g->n ? (CUgraphNode)g->nodes[i] : NULL;
  *n = g->n;
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType *out) {
  ENTER(cuGraphNodeGetType);
  Node *node = check(handle, NODE);
  if (!node)
    return CUDA_ERROR_INVALID_VALUE;
  int id = node->step.id;
  *out = id == ID_cuLaunchKernelEx                                                                ? CU_GRAPH_NODE_TYPE_KERNEL
         : id == ID_cuMemsetD8Async || id == ID_cuMemsetD16Async || id == ID_cuMemsetD32Async ? CU_GRAPH_NODE_TYPE_MEMSET
         : id == ID_cuEventRecord                                                              ? CU_GRAPH_NODE_TYPE_EVENT_RECORD
         : id == ID_cuLaunchHostFunc                                                           ? CU_GRAPH_NODE_TYPE_HOST
                                                                                               : CU_GRAPH_NODE_TYPE_MEMCPY;
  return CUDA_SUCCESS;
}
static CUresult instantiate(CUgraphExec *out, CUgraph handle) {
  Graph *g = check(handle, GRAPH);
  if (!g)
    return CUDA_ERROR_INVALID_VALUE;
  Graph *exec = make(EXEC, sizeof(Graph), g->head.device);
  exec->n = g->n;
  exec->nodes = malloc((g->n + 1) * sizeof *g->nodes);
  memcpy(exec->nodes, g->nodes, g->n * sizeof *g->nodes);
  *out = (CUgraphExec)exec;
  note(ID_cuGraphInstantiateWithFlags, 0, (uint64_t)exec, g->n, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
  WITH_CONTEXT(cuGraphInstantiateWithFlags);
  return instantiate(out, graph);
}
PUBLIC CUresult cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
  WITH_CONTEXT(cuGraphInstantiateWithParams);
  params->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  return instantiate(out, graph);
}
PUBLIC CUresult cuGraphExecDestroy(CUgraphExec handle) {
  ENTER(cuGraphExecDestroy);
  Graph *g = check(handle, EXEC);
  if (!g)
    return CUDA_ERROR_INVALID_VALUE;
  g->head.alive = 0;
  note(ID_cuGraphExecDestroy, 0, (uint64_t)handle, 0, 0);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
  WITH_CONTEXT(cuGraphUpload);
  return check(handle, EXEC) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
PUBLIC CUresult cuGraphDebugDotPrint(CUgraph handle, const char *path, unsigned flags) {
  ENTER(cuGraphDebugDotPrint);
  Graph *g = check(handle, GRAPH);
  FILE *file = g ? fopen(path, "w") : NULL;
  if (!file)
    return CUDA_ERROR_INVALID_VALUE;
  fprintf(file, "digraph dot {\n");
  for (size_t i = 0; i < g->n; i++)
    fprintf(file, "n%zu [label=\"%s\"];\n", i, g->nodes[i]->function ? g->nodes[i]->function->name : "copy");
  fprintf(file, "}\n");
  fclose(file);
  return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
  WITH_CONTEXT(cuGraphLaunch);
  Graph *g = check(handle, EXEC);
  Stream *s;
  CUresult r = on_stream(stream, &s);
  if (r)
    return r;
  if (!g || (s && s->capture))
    return g ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_ERROR_INVALID_VALUE;
  note(ID_cuGraphLaunch, (uint64_t)stream, (uint64_t)handle, g->n, 0);
  for (size_t i = 0; i < g->n; i++) {
    Node *node = g->nodes[i];
    if (node->function) {
      if (!node->function->head.alive) // its module was unloaded: a GPU would fault here
        return CUDA_ERROR_ILLEGAL_ADDRESS;
      Launch launch = node->launch;
      launch.stream = (uint64_t)stream;
      launch.captured = 0;
      launch.replayed = 1;
      put_launch(&launch);
    } else if (node->step.id == ID_cuEventRecord) {
      Event *e = check((void *)node->step.a, EVENT);
      if (e)
        replay_event(e, s);
    } else if (node->step.id == ID_cuLaunchHostFunc) {
      ((CUhostFn)node->step.a)((void *)node->step.b);
    } else {
      int device_side = node->step.id == ID_cuMemcpyDtoHAsync_v2 || node->step.id == ID_cuMemcpyAsync;
      if (!device_side && !device_range(node->step.a, node->step.c)) // its memory was given back to the driver
        return CUDA_ERROR_ILLEGAL_ADDRESS;
      perform(&node->step);
    }
  }
  return CUDA_SUCCESS;
}
