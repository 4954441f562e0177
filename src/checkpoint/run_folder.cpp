// The checkpoints of a run: which are there, which is the newest, which go.
//
//   step_00001000        a finished checkpoint, with its manifest
//   .step_00001000.tmp   being written (its files are locked with flock), or left by a writer that was killed
//   .step_00001000.old   what step_00001000 held before, on file systems that cannot exchange two folders
//   .step_00001000.gone  being deleted
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <set>
#include <string_view>

#include "checkpoint/checkpoint.h"
#include "checkpoint/folders.h"
#include "checkpoint/manifest.h"
#include "core/error.h"

namespace sfa {
namespace {
using namespace checkpoint;
namespace fs = std::filesystem;

struct Entry {
  std::int64_t step = 0;
  std::string suffix;  // "", "tmp", "old", "gone"
  fs::path path;
};

std::optional<std::int64_t> step_of(std::string_view name) {
  if (!name.starts_with("step_")) return std::nullopt;
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0 || step_folder_name(step) != name)
    return std::nullopt;
  return step;
}

std::optional<Entry> entry_of(const fs::path& path) {
  const std::string name = path.filename().string();
  if (const auto step = step_of(name)) return Entry{*step, "", path};
  if (!name.starts_with(".step_")) return std::nullopt;
  for (const char* suffix : {"tmp", "old", "gone"}) {
    const std::string ending = std::string(".") + suffix;
    if (!name.ends_with(ending)) continue;
    if (const auto step = step_of(std::string_view(name).substr(1, name.size() - 1 - ending.size())))
      return Entry{*step, suffix, path};
  }
  return std::nullopt;
}

// Every folder of ours in a run folder; none when that is not there.
std::vector<Entry> scan(const fs::path& run_folder) {
  std::vector<Entry> entries;
  std::error_code error;
  fs::directory_iterator it(run_folder, error);
  if (error == std::errc::no_such_file_or_directory) return entries;
  for (; !error && it != fs::directory_iterator(); it.increment(error))
    if (auto entry = entry_of(it->path())) entries.push_back(std::move(*entry));
  if (error) fail("cannot read the folder {}: {}", run_folder.string(), error.message());
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.step < b.step; });
  return entries;
}

bool has_manifest(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / kManifestName, error);
}

// True when a writer of this or another process holds the folder, or when that cannot be known.
bool in_use(const fs::path& temporary) {
  std::error_code error;
  for (fs::directory_iterator it(temporary, error), end; !error && it != end; it.increment(error)) {
    if (!it->path().filename().string().starts_with("rank_")) continue;
    const int fd = ::open(it->path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) continue;
    const bool free = fd >= 0 && ::flock(fd, LOCK_SH | LOCK_NB) == 0;
    if (fd >= 0) ::close(fd);
    if (!free) return true;
  }
  return false;
}

// A kill while the files go leaves nothing half-deleted under a good name.
void remove_checkpoint(const Entry& entry) {
  const fs::path gone = entry.path.parent_path() / fmt::format(".{}.gone", step_folder_name(entry.step));
  remove_tree(gone);
  if (::rename(entry.path.c_str(), gone.c_str()) != 0) {
    if (errno == ENOENT) return;  // somebody else was faster
    fail_system("delete the checkpoint", entry.path, errno);
  }
  remove_tree(gone);
}
}  // namespace

std::vector<fs::path> list_checkpoints(const fs::path& run_folder) {
  std::vector<fs::path> found;
  std::set<std::int64_t> good;
  const std::vector<Entry> entries = scan(run_folder);
  for (const Entry& entry : entries)
    if (entry.suffix.empty() && has_manifest(entry.path)) good.insert(entry.step);
  for (const Entry& entry : entries) {
    // A checkpoint moved aside counts as long as nothing has taken its place.
    const bool moved_aside = entry.suffix == "old" && !good.contains(entry.step) && has_manifest(entry.path);
    if (moved_aside || (entry.suffix.empty() && good.contains(entry.step))) found.push_back(entry.path);
  }
  return found;
}

fs::path find_checkpoint(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) fail("there is no checkpoint and no run folder {}", path.string());
  if (error) fail("cannot read {}: {}", path.string(), error.message());
  require(fs::is_directory(status), "{} is a file; a checkpoint is a folder with a {}", path.string(), kManifestName);
  fs::path name = path;
  if (!name.has_filename()) name = name.parent_path();  // "run/step_00000010/"
  const auto entry = entry_of(name);
  if (entry && entry->suffix != "tmp" && entry->suffix != "gone" && has_manifest(path)) return path;
  require(!entry, "{} is an unfinished checkpoint: it has no {} or a temporary name", path.string(), kManifestName);
  if (has_manifest(path)) return path;  // a checkpoint that somebody renamed
  const auto all = list_checkpoints(path);
  require(!all.empty(), "{} holds no finished checkpoint", path.string());
  return all.back();
}

std::vector<fs::path> prune_checkpoints(const fs::path& run_folder, std::int64_t keep_last, std::int64_t keep_every) {
  require(keep_last >= 0 && keep_every >= 0, "keep_last and keep_every cannot be negative ({}, {})", keep_last,
          keep_every);
  std::vector<fs::path> removed;
  const std::vector<fs::path> listed = list_checkpoints(run_folder);
  std::set<std::int64_t> finished;
  for (const fs::path& path : listed) finished.insert(entry_of(path)->step);
  std::set<std::int64_t> kept;
  for (auto step = finished.rbegin(); step != finished.rend(); ++step)
    if (keep_last == 0 || std::cmp_less(kept.size(), keep_last)) kept.insert(*step);
  for (const std::int64_t step : finished)
    if (keep_every > 0 && step % keep_every == 0) kept.insert(step);

  for (const Entry& entry : scan(run_folder)) {
    if (entry.suffix.empty() && !finished.contains(entry.step))
      continue;  // a folder without manifest: not ours to judge
    if (entry.suffix == "tmp" && in_use(entry.path)) continue;
    if (entry.suffix == "old" && kept.contains(entry.step) && !has_manifest(run_folder / step_folder_name(entry.step)))
      continue;  // the only one of its step
    if (entry.suffix.empty() && kept.contains(entry.step)) continue;
    remove_checkpoint(entry);
    if (std::find(listed.begin(), listed.end(), entry.path) != listed.end())
      removed.push_back(run_folder / step_folder_name(entry.step));
  }
  return removed;
}

}  // namespace sfa
