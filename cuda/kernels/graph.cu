/* graph.cu: events, graphs, and named ranges for profilers. */
#include <nvtx3/nvToolsExt.h>

#include "device.h"

using namespace minisgl;

struct msgl_event : Owned {
  explicit msgl_event(int device) : device(device) { check(cudaEventCreate(&event), "cudaEventCreate"); }
  ~msgl_event() override { cudaEventDestroy(event); }
  int device;
  bool recorded = false;
  cudaEvent_t event = nullptr;
};

struct msgl_graph : Owned {
  explicit msgl_graph(cudaGraph_t graph) { check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate"); }
  ~msgl_graph() override { cudaGraphExecDestroy(executable); }
  cudaGraphExec_t executable = nullptr;
};

int32_t msgl_event_create(msgl_device *device, msgl_event **event) {
  return on_device(device, [&] { *event = device->adopt(std::make_unique<msgl_event>(device->index)); });
}

int32_t msgl_event_destroy(msgl_device *device, msgl_event *event) {
  return on_device(device, [&] { device->release(event); });
}

int32_t msgl_event_record(msgl_device *device, msgl_event *event) {
  return on_device(device, [&] {
    check(cudaEventRecord(event->event, device->stream), "cudaEventRecord");
    event->recorded = true;
  });
}

int32_t msgl_event_query(msgl_event *event, int32_t *done) {
  return guard([&] {
    check(cudaSetDevice(event->device), "cudaSetDevice");
    const cudaError_t status = event->recorded ? cudaEventQuery(event->event) : cudaSuccess;
    if (status != cudaErrorNotReady) check(status, "the device");
    *done = status == cudaSuccess;
  });
}

int32_t msgl_event_synchronize(msgl_event *event) {
  return guard([&] {
    check(cudaSetDevice(event->device), "cudaSetDevice");
    if (event->recorded) check(cudaEventSynchronize(event->event), "the device");
  });
}

int32_t msgl_event_elapsed(const msgl_event *begin, const msgl_event *end, float *milliseconds) {
  return guard([&] {
    check(cudaSetDevice(begin->device), "cudaSetDevice");
    check(cudaEventElapsedTime(milliseconds, begin->event, end->event), "cudaEventElapsedTime");
  });
}

int32_t msgl_capture_begin(msgl_device *device) {
  return on_device(device, [&] {
    refuse_in_capture(device, "a second capture");
    check(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    device->capturing = true;
  });
}

int32_t msgl_capture_end(msgl_device *device, msgl_graph **graph) {
  return on_device(device, [&] {
    cudaGraph_t captured = nullptr;
    device->capturing = false;
    check(cudaStreamEndCapture(device->stream, &captured), "cudaStreamEndCapture");
    const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, decltype(&cudaGraphDestroy)> owner(captured,
                                                                                                cudaGraphDestroy);
    auto instance = std::make_unique<msgl_graph>(captured);
    check(cudaGraphUpload(instance->executable, device->stream), "cudaGraphUpload");
    *graph = device->adopt(std::move(instance));
  });
}

int32_t msgl_graph_launch(msgl_device *device, msgl_graph *graph) {
  return on_device(device, [&] { check(cudaGraphLaunch(graph->executable, device->stream), "cudaGraphLaunch"); });
}

int32_t msgl_graph_destroy(msgl_device *device, msgl_graph *graph) {
  return on_device(device, [&] { device->release(graph); });
}

int32_t msgl_range_push(const char *name) {
  nvtxRangePushA(name);
  return 0;
}

int32_t msgl_range_pop(void) {
  nvtxRangePop();
  return 0;
}
