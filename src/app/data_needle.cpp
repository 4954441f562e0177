// sfa data needle
#include <fmt/core.h>

#include "app/commands.h"
#include "core/progress.h"
#include "data/needle.h"

namespace sfa::app {

void add_needle_data_command(CLI::App& data) {
  auto o = std::make_shared<NeedleDataOptions>();
  CLI::App* command = data.add_subcommand(
      "needle", "Write sequences of the synthetic needle-in-a-haystack task (`sfa eval niah`) to train on");
  command->add_option("--output,-o", o->path, "The token file to write (.h5)")->required();
  command->add_option("--seq-len", o->seq_len, "Tokens of a training window (data.seq_len)")->capture_default_str();
  command
      ->add_option(
          "--lengths", o->lengths,
          "Lengths of sequences, each a divisor of --seq-len; default: --seq-len, halved again and again down to 16")
      ->delimiter(',');
  command->add_option("--windows", o->windows, "Windows to write; a run should not see one twice")
      ->capture_default_str();
  command->add_option("--val-fraction", o->val_fraction, "Part at the end that is kept for validation")
      ->capture_default_str();
  command->add_option("--seed", o->seed, "Of the needles")->capture_default_str();
  command->add_flag("--force", o->force, "Replace the output if it exists");
  command->callback([o] {
    NeedleDataOptions options = *o;
    // Short sequences too: they have an answer every few tokens, and are what a model learns to look up from.
    if (o->lengths.empty()) options.lengths.push_back(o->seq_len);
    while (o->lengths.empty() && options.lengths.back() % 2 == 0 && options.lengths.back() >= 32)
      options.lengths.push_back(options.lengths.back() / 2);
    const TokenFileInfo info = write_needle_data(options);
    fmt::print("{}: {} tokens ({} to train) in {} sequences\n", info.path, grouped(info.total_tokens),
               grouped(info.val_start), grouped(info.num_documents));
  });
}

}  // namespace sfa::app
