// Streams and events. Lazy streams keep their work until something waits for it, and then do no more than
// that needs.
#include <algorithm>
#include <utility>

#include "emulator.hpp"
#include "machine.hpp"
#include "runtime.hpp"

namespace cudasim {

Runtime& runtime() {
  static Runtime* r = new Runtime;  // never destroyed: tensors of static storage may be released late
  return *r;
}
namespace {
// The race detector does not see the guard of the static above.
[[maybe_unused]] const Runtime& made_before_main = runtime();

cudaError_t run_first(CUstream_st& s) {
  const Work work = std::move(s.work.front());
  s.work.pop_front();
  s.busy = true;
  const cudaError_t error = work.run();
  s.busy = false;
  return error;
}

cudaError_t run_until(const Record& record) {
  cudaError_t error = cudaSuccess;
  while (!record.done && !record.stream->work.empty())
    if (const cudaError_t e = run_first(*record.stream); e != cudaSuccess) error = e;
  return error;
}

CUstream_st& null_stream(int device) {
  std::unique_ptr<CUstream_st>& s = runtime().null_streams[device];
  if (!s) s = std::make_unique<CUstream_st>(CUstream_st{device, true, {}, false});
  return *s;
}

// The null stream and the blocking streams of its device wait for each other. What one waits for runs at
// once.
cudaError_t settle_null_stream(CUstream_st& s) {
  if (!s.blocking) return cudaSuccess;
  if (&s != &null_stream(s.device)) return drain(null_stream(s.device));
  cudaError_t error = cudaSuccess;
  for (CUstream_st* other : runtime().streams)
    if (other->blocking && other->device == s.device)
      if (const cudaError_t e = drain(*other); e != cudaSuccess) error = e;
  return error;
}
}  // namespace

CUstream_st& stream_of(cudaStream_t stream) {
  const bool named = stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread;
  return named ? *stream : null_stream(current_device());
}

cudaError_t push(CUstream_st& s, Work work) {
  const cudaError_t error = settle_null_stream(s);
  if (!options().lazy_streams) return note_error(error != cudaSuccess ? error : work.run());
  s.work.push_back(std::move(work));
  return note_error(error);
}

cudaError_t drain(CUstream_st& s) {
  cudaError_t error = cudaSuccess;
  while (!s.work.empty())
    if (const cudaError_t e = run_first(s); e != cudaSuccess) error = e;
  return note_error(error);
}

cudaError_t drain_all() {
  cudaError_t error = cudaSuccess;
  const auto drain_one = [&](CUstream_st& s) {
    if (const cudaError_t e = drain(s); e != cudaSuccess) error = e;
  };
  for (auto& [device, s] : runtime().null_streams) drain_one(*s);
  for (CUstream_st* s : runtime().streams) drain_one(*s);
  return error;
}

bool is_current_device(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  return stream_of(stream).device == current_device();
}

cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work, std::function<bool()> ready) {
  Lock lock(runtime().mutex);
  if (num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  return push(stream_of(stream), {[work = std::move(work)] {
                                    DeviceAccess access;
                                    return work();
                                  },
                                  std::move(ready)});
}

void progress_others() {
  Lock lock(runtime().mutex);
  for (CUstream_st* s : runtime().streams)
    while (!s->busy && !s->work.empty() && (!s->work.front().ready || s->work.front().ready()))
      note_error(run_first(*s));
}

}  // namespace cudasim

using cudasim::Lock;
using cudasim::note_error;
using cudasim::runtime;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  Lock lock(runtime().mutex);
  if (cudasim::num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  *stream = new CUstream_st{cudasim::current_device(), (flags & cudaStreamNonBlocking) == 0, {}, false};
  runtime().streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  return cudasim::drain(cudasim::stream_of(stream));
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}  // it has just finished
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  const cudaError_t error = cudasim::drain(*stream);
  std::erase(runtime().streams, stream);
  delete stream;
  return error;
}
cudaError_t cudaDeviceSynchronize() {
  Lock lock(runtime().mutex);
  return cudasim::drain_all();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (cudasim::num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(runtime().mutex);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(runtime().mutex);
  CUstream_st& s = cudasim::stream_of(stream);
  auto record = std::make_shared<cudasim::Record>(cudasim::Record{&s, false, {}});
  event->last = record;
  return cudasim::push(s, {[record] {
                             record->when = std::chrono::steady_clock::now();
                             record->done = true;
                             return cudaSuccess;
                           },
                           {}});
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(runtime().mutex);
  return event->last ? note_error(cudasim::run_until(*event->last)) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }  // it has just happened
// The record that the event holds now counts, not a later one.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(runtime().mutex);
  if (!event->last) return cudaSuccess;
  return cudasim::push(cudasim::stream_of(stream),
                       {[record = event->last] { return cudasim::run_until(*record); },
                        [record = event->last] { return record->done; }});
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(runtime().mutex);
  if (!from->last || !to->last || !from->last->done || !to->last->done) return note_error(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(to->last->when - from->last->when).count();
  return cudaSuccess;
}

}  // extern "C"
