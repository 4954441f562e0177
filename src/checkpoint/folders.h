// Folders that must be whole: names made durable, one folder put in the place of another in a single step, deletion.
// Every failure is an Error whose sentence names the path and the system's reason.
#pragma once

#include <filesystem>
#include <string_view>

namespace sfa::checkpoint {

/// Throws Error: "could not {what} {path}: {system_reason(error)}".
[[noreturn]] void fail_system(std::string_view what, const std::filesystem::path& path, int error);

/// Makes the names in a folder durable. File systems that cannot fsync a folder are taken as they are.
void sync_folder(const std::filesystem::path& folder);

/// Puts the folder `fresh` in the place of `target` in one step: when `target` exists, the two are exchanged and what
/// it held is deleted afterwards, so that at every moment one of them is whole under the good name. Where the file
/// system knows no exchange, the old folder is first moved to `aside`, which readers of the run folder still find. Both
/// parents must be the same folder, which is fsynced.
void replace_folder(const std::filesystem::path& fresh, const std::filesystem::path& target,
                    const std::filesystem::path& aside);

/// Deletes a file or a folder with all it holds; nothing there is fine.
void remove_tree(const std::filesystem::path& path);

}  // namespace sfa::checkpoint
