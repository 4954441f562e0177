// Which algorithms a run's matrix products use on a GPU, in products.txt of its folder: chosen once, and the same ones
// after a resume. On the CPU there is no choice and no file.
#pragma once

#include <filesystem>

#include "core/context.h"

namespace sfa {

/// Takes what an earlier part of the run chose. Says so in the log when the file is of no use here.
void restore_products(Context& ctx, const std::filesystem::path& run_folder);
/// Writes what has been chosen, when that is news.
void keep_products(const Context& ctx, const std::filesystem::path& run_folder);

}  // namespace sfa
