// moecollab assemble: anchor and contributed shards become one model, without any data.
#include <fmt/format.h>

#include <cstdio>

#include "app/commands.hpp"
#include "app/model_files.hpp"
#include "moecollab/collab/contribution.hpp"

namespace moecollab::app {

void run_assemble(const Job& job) {
  const config::Settings& settings = job.settings;
  if (job.world.rank() == 0) {
    const std::string anchor = find_checkpoint(settings.anchor);
    const store::Manifest model = collab::assemble(anchor, settings.shards, settings.out);
    fmt::print("assembled {} from {}\n", settings.out, anchor);
    for (const ExpertSlot& slot : model.slots)
      fmt::print("  {:<16} {}  domain {}, owner {}, {} of width {}\n", slot.name, to_string(slot.uuid),
                 slot.domain, slot.owner, to_string(slot.kind), slot.width);
    std::fflush(stdout);
  }
  job.world.barrier();
}

}  // namespace moecollab::app
