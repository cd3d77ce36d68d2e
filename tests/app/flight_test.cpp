// Flight records: written by a process that dies for real, read by the next one.
#include "app/flight.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <thread>

#include "support/temporary_directory.hpp"

namespace moecollab::app {
namespace {

// Runs `work` in a process of its own and returns the signal that ended it (0: none).
int signal_of(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

FlightNote only_note(const test::TemporaryDirectory& run) {
  const std::vector<FlightNote> notes = read_flights(run.path());
  EXPECT_EQ(notes.size(), 1U);
  return notes.empty() ? FlightNote{} : notes[0];
}

TEST(Flight, ARecordIsReadBack) {
  const test::TemporaryDirectory run;
  const auto record = open_flight(run.path(), Communicator::self());
  record->set_step(1234567);
  record->set_phase(Phase::expert_gemm);
  const FlightNote note = only_note(run);
  EXPECT_EQ(note.rank, 0);
  EXPECT_EQ(note.pid, ::getpid());
  EXPECT_EQ(note.step, 1234567);
  EXPECT_EQ(note.phase, "expert_gemm");
  EXPECT_EQ(note.status, "running");
  EXPECT_GT(note.alive_ms, 0);
  for (int i = 0; i < 500 && only_note(run).alive_ms <= note.alive_ms; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_GT(only_note(run).alive_ms, note.alive_ms);
  char host[64] = "";
  ::gethostname(host, sizeof host - 1);
  EXPECT_EQ(note.host, std::string(host).substr(0, 40));
}

TEST(Flight, AKilledProcessLeavesItsLastPhase) {
  const test::TemporaryDirectory run;
  const int signal = signal_of([&run] {
    const auto record = open_flight(run.path(), Communicator::self());
    note_termination(record.get());
    record->set_step(17);
    record->set_phase(Phase::all_to_all);
    std::raise(SIGKILL);
  });
  EXPECT_EQ(signal, SIGKILL);
  EXPECT_EQ(only_note(run).status, "running");
  const std::string end = previous_end(read_flights(run.path()));
  EXPECT_EQ(end.find("the previous run ended: rank 0 died in phase all_to_all at step 17 on "), 0U) << end;
}

TEST(Flight, ASignalIsNotedAndStillEndsTheProcess) {
  for (const int wanted : {SIGTERM, SIGINT}) {
    const test::TemporaryDirectory run;
    const int signal = signal_of([&run, wanted] {
      const auto record = open_flight(run.path(), Communicator::self());
      note_termination(record.get());
      std::raise(wanted);
    });
    EXPECT_EQ(signal, wanted);
    EXPECT_EQ(only_note(run).status, "terminated from outside");
  }
}

TEST(Flight, TheCauseOfAFailureIsNotOverwrittenByTheSignalThatFollows) {
  const test::TemporaryDirectory run;
  const int signal = signal_of([&run] {
    const auto record = open_flight(run.path(), Communicator::self());
    note_termination(record.get());
    stop_noting_termination();
    record->set_status("error: the disk is full");
    std::raise(SIGTERM);
  });
  EXPECT_EQ(signal, SIGTERM);
  EXPECT_EQ(only_note(run).status, "error: the disk is full");
}

TEST(Flight, OpeningRemovesRecordsOfALargerRun) {
  const test::TemporaryDirectory run;
  std::filesystem::create_directories(run / "flight");
  { const FlightRecord old(run / "flight/rank-7.txt", 7); }
  ASSERT_EQ(only_note(run).rank, 7);
  const auto record = open_flight(run.path(), Communicator::self());
  EXPECT_EQ(only_note(run).rank, 0);
}

TEST(Flight, WhatIsNoRecordIsLeftOut) {
  EXPECT_FALSE(parse_flight(""));
  EXPECT_FALSE(parse_flight("rank x host h pid 1 step 2 phase p running"));
  EXPECT_FALSE(parse_flight("rank 1 host h pid 1"));
  EXPECT_FALSE(parse_flight("rank 1 host h pid 1 step 2 phase p running"));
  EXPECT_TRUE(read_flights("/no/such/run").empty());
}

FlightNote note(int rank, const std::string& status, std::int64_t alive_ms = 5000) {
  return {rank, "h", 1, 17, "route", alive_ms, status};
}

TEST(PreviousEnd, NamesTheCauseAndNotItsVictims) {
  const std::string term = "terminated from outside";
  using Notes = std::vector<FlightNote>;
  const auto end = [](const Notes& notes) { return previous_end(notes); };
  EXPECT_EQ(end({}), "");
  EXPECT_EQ(end({note(0, "done"), note(1, "done")}), "");
  EXPECT_EQ(end({note(0, term), note(1, "running"), note(2, term)}),
            "the previous run ended: rank 1 died in phase route at step 17 on h");
  EXPECT_EQ(end({note(0, "running"), note(1, "error: no memory"), note(2, term)}),
            "the previous run ended: rank 1 failed in phase route at step 17 on h: no memory");
  EXPECT_EQ(end({note(0, "running"), note(1, "running"), note(2, term)}),
            "the previous run ended: rank 0 died in phase route at step 17 on h (and 1 more)");
  EXPECT_EQ(end({note(0, "running"), note(1, "running")}),
            "the previous run ended: all 2 ranks died at once, rank 0 in phase route at step 17 on h");
  // A launcher that kills the others a second later, and some of them before they can say so.
  EXPECT_EQ(end({note(0, "running", 6000), note(1, "running", 5000), note(2, term, 6010)}),
            "the previous run ended: rank 1 died in phase route at step 17 on h");
  EXPECT_EQ(end({note(0, "running", 6000), note(1, "running", 5000), note(2, "running", 5050)}),
            "the previous run ended: rank 1 died in phase route at step 17 on h (and 1 more)");
  EXPECT_EQ(end({note(0, "running", 6000), note(1, "error: no memory", 5000)}),
            "the previous run ended: rank 1 failed in phase route at step 17 on h: no memory");
  EXPECT_EQ(end({note(0, "running", 5000), note(1, "running", 5200)}),
            "the previous run ended: all 2 ranks died at once, rank 0 in phase route at step 17 on h");
  EXPECT_EQ(end({note(0, term), note(1, term)}),
            "the previous run was terminated from outside, rank 0 in phase route at step 17 on h");
}

}  // namespace
}  // namespace moecollab::app
