// Writing a checkpoint.
//
// HDF5 itself never touches the disk. It lays out the file - superblock, groups, object headers, where each contiguous
// dataset lies - in an anonymous memory file, where the space of the data stays a hole. The data go straight from the
// caller's memory to that place of the real file with pwrite, block by block with its checksum, and finish_file() adds
// what HDF5 wrote between them. So HDF5's global lock is held for microseconds and never during I/O, a full disk or a
// broken one shows as the errno of our own call, and HDF5 is never left with metadata that it cannot flush.
#include <fcntl.h>
#include <hdf5.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "checkpoint/folders.h"
#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hdf5.h"

namespace sfa {
namespace {
using namespace checkpoint;
namespace fs = std::filesystem;

template <class T>
T checked(T result, const std::string& what) {
  if (result < 0) fail("HDF5 could not {} of a checkpoint: {}", what, hdf5::last_error());
  return result;
}

// HDF5 does not survive a write that fails while it closes a file. In memory only one thing makes that happen: a limit
// on the size of files, which counts for memory files too. So the limit is compared before HDF5 lays out anything that
// would reach it, its own structures included.
void check_size_limit(std::int64_t end, const fs::path& path) {
  constexpr std::int64_t kStructures = std::int64_t{1} << 20;
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  if (std::cmp_greater(end + kStructures, limit.rlim_cur)) fail_system("write", path, EFBIG);
}

// HDF5 knows no bf16, and f16 only in its newest versions: their bits are stored as u16, and the attribute "dtype"
// tells.
hid_t stored_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::u8:
      return H5T_STD_U8LE;
    case DType::u32:
      return H5T_STD_U32LE;
    case DType::i64:
      return H5T_STD_I64LE;
    case DType::bf16:
    case DType::f16:
    case DType::u16:
      return H5T_STD_U16LE;
  }
  fail("internal error: dtype without a stored type");
}

void write_shape(hid_t dataset, const std::vector<std::int64_t>& shape) {
  const hsize_t dims[1] = {shape.size()};
  const hdf5::Handle space(H5Screate_simple(1, dims, nullptr), H5Sclose);
  const hdf5::Handle attribute(
      checked(H5Acreate2(dataset, "shape", H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT),
              "store a shape in a file"),
      H5Aclose);
  checked(H5Awrite(attribute.get(), H5T_NATIVE_INT64, shape.data()), "store a shape in a file");
}

// The layout of one HDF5 file, in memory. Every method is called under hdf5::Lock.
class Layout {
 public:
  Layout(std::int64_t step, int rank) : memory_(File::in_memory("the layout of a checkpoint, in memory")) {
    const hdf5::Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    H5Pset_fapl_stdio(access.get());  // the default driver asks for the file's real path, and a memory file has none
    H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
    H5Pset_alignment(access.get(), 64 * 1024, 4096);
    const hdf5::Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
    H5Pset_obj_track_times(creation.get(), false);  // the same content makes the same bytes
    const std::string path = fmt::format("/proc/self/fd/{}", memory_.descriptor());
    file_ = hdf5::Handle(
        checked(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), "begin the layout"), H5Fclose);
    hdf5::write_attribute(file_.get(), "format", std::string("sfa-checkpoint"));
    hdf5::write_attribute(file_.get(), "step", step);
    hdf5::write_attribute(file_.get(), "rank", std::int64_t{rank});
  }

  // A tensor whole is a dataset of its shape under its name; a part is the dataset "name@begin" with the attributes
  // begin and shape. Returns the byte offset.
  std::int64_t place(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count) {
    const bool whole = count == tensor.numel();
    const std::string name = whole ? tensor.name : fmt::format("{}@{}", tensor.name, begin);
    std::vector<hsize_t> dims{static_cast<hsize_t>(count)};
    if (whole) dims.assign(tensor.shape.begin(), tensor.shape.end());
    const hdf5::Handle space(
        checked(dims.empty() ? H5Screate(H5S_SCALAR)
                             : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
                "describe the dataset " + name),
        H5Sclose);
    create_groups(tensor.name);
    const hdf5::Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_layout(properties.get(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(properties.get(), false);
    const hdf5::Handle dataset(checked(H5Dcreate2(file_.get(), name.c_str(), stored_type(tensor.dtype), space.get(),
                                                  H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                                       "create the dataset " + name),
                               H5Dclose);
    hdf5::write_attribute(dataset.get(), "dtype", std::string(name_of(tensor.dtype)));
    if (!whole) {
      hdf5::write_attribute(dataset.get(), "begin", begin);
      write_shape(dataset.get(), tensor.shape);
    }
    const haddr_t offset = H5Dget_offset(dataset.get());
    require(offset != HADDR_UNDEF, "HDF5 gave the dataset {} no place: {}", name, hdf5::last_error());
    return static_cast<std::int64_t>(offset);
  }

  // Flushes everything; after it memory() holds the file without its data.
  void close() { checked(file_.close(), "finish the layout"); }
  [[nodiscard]] const File& memory() const { return memory_; }

 private:
  // The groups above a dataset, by hand: those that HDF5 makes by itself carry the time.
  void create_groups(const std::string& name) {
    for (std::size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      if (!groups_.insert(group).second) continue;
      const hdf5::Handle properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
      H5Pset_obj_track_times(properties.get(), false);
      const hdf5::Handle created(
          checked(H5Gcreate2(file_.get(), group.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                  "create the group " + group),
          H5Gclose);
    }
  }

  File memory_;
  hdf5::Handle file_;
  std::set<std::string> groups_;
};

}  // namespace

struct CheckpointWriter::Impl {
  fs::path run, folder, path;
  std::int64_t step = 0;
  int rank = 0;
  File file;                       // locked with flock as long as this writer lives: prune leaves its folder alone
  std::unique_ptr<Layout> layout;  // until finish_file
  std::map<std::string, StoredTensor> tensors;
  std::int64_t last_byte = 0;  // where the last piece ends
  bool failed = false, finished = false, published = false;

  Impl(fs::path run_folder, std::int64_t at_step, int at_rank)
      : run(std::move(run_folder)), step(at_step), rank(at_rank) {
    require(step >= 0 && rank >= 0 && rank < 100000, "internal error: checkpoint of step {} by rank {}", step, rank);
    if (run.empty()) run = ".";
    folder = run / temporary_name(step);
    path = folder / rank_file_name(rank);
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) fail_system("create the folder", folder, error.value());
    file = File::open_or_create(path.string());
    if (::flock(file.descriptor(), LOCK_EX | LOCK_NB) != 0)
      require(errno != EWOULDBLOCK, "{} is being written by another process", folder.string());
    try {
      file.truncate(0);
      if (rank == 0) remove_tree(folder / kManifestName);  // of a writer that was killed before its rename
      check_size_limit(0, path);
      const hdf5::Lock lock;
      layout = std::make_unique<Layout>(step, rank);
    } catch (...) {
      discard();
      throw;
    }
  }

  ~Impl() {
    if (layout) {
      const hdf5::Lock lock;
      layout.reset();
    }
    if (!published) discard();
  }

  // Rank 0 owns the folder; another rank's file, once finished, is rank 0's to publish or to remove.
  void discard() const noexcept {
    try {
      if (rank == 0) {
        remove_tree(folder);
      } else if (!finished) {
        remove_tree(path);
      }
    } catch (const Error&) {  // what stays is never listed, and prune removes it
    }
  }

  void write_piece(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count, const void* data) {
    Piece piece;
    piece.file = rank_file_name(rank);
    piece.begin = begin;
    piece.count = count;
    const auto bytes = count * static_cast<std::int64_t>(size_of(tensor.dtype));
    check_size_limit(last_byte + bytes, path);
    {
      const hdf5::Lock lock;
      piece.offset = layout->place(tensor, begin, count);
    }
    const auto* from = static_cast<const char*>(data);
    last_byte = std::max(last_byte, piece.offset + bytes);
    for (std::int64_t at = 0; at < bytes; at += kBlockBytes) {
      const auto block = static_cast<std::size_t>(std::min(kBlockBytes, bytes - at));
      piece.checksums.push_back(XXH3_64bits(from + at, block));
      file.write_at(piece.offset + at, from + at, block);
    }
    tensors[tensor.name].pieces.push_back(std::move(piece));
  }

  // Copies what HDF5 wrote around the pieces from memory to the file; returns size and checksum of that.
  StoredFile write_structure() {
    std::vector<std::pair<std::int64_t, std::int64_t>> pieces;  // byte ranges
    for (const auto& [name, stored] : tensors)
      for (const Piece& piece : stored.pieces)
        pieces.emplace_back(piece.offset,
                            piece.offset + piece.count * static_cast<std::int64_t>(size_of(stored.tensor.dtype)));
    std::sort(pieces.begin(), pieces.end());
    StoredFile stored;
    stored.bytes = static_cast<std::int64_t>(layout->memory().size());
    pieces.emplace_back(stored.bytes, stored.bytes);
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), XXH3_freeState);
    XXH3_64bits_reset(hash.get());
    std::vector<char> buffer;
    std::int64_t at = 0;
    for (const auto& [begin, end] : pieces) {
      buffer.resize(static_cast<std::size_t>(std::max<std::int64_t>(begin - at, 0)));
      layout->memory().read_at(at, buffer.data(), buffer.size());
      XXH3_64bits_update(hash.get(), buffer.data(), buffer.size());
      file.write_at(at, buffer.data(), buffer.size());
      at = end;
    }
    file.truncate(stored.bytes);
    stored.structure_checksum = XXH3_64bits_digest(hash.get());
    return stored;
  }
};

CheckpointWriter::CheckpointWriter(fs::path run_folder, std::int64_t step, int rank)
    : impl_(std::make_unique<Impl>(std::move(run_folder), step, rank)) {}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::add(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count, const void* data) {
  require(!impl_->finished && !impl_->failed, "internal error: a tensor for a checkpoint file that is {}",
          impl_->failed ? "broken" : "finished");
  check_tensor_name(tensor.name, impl_->path.string());
  const std::int64_t numel = tensor.numel();
  require(begin >= 0 && count >= 0 && begin <= numel && count <= numel - begin,
          "internal error: elements [{}, {} + {}) of tensor '{}', which has {}", begin, begin, count, tensor.name,
          numel);
  const auto [known, fresh] = impl_->tensors.try_emplace(tensor.name, StoredTensor{tensor, {}});
  require(fresh || (known->second.tensor.dtype == tensor.dtype && known->second.tensor.shape == tensor.shape),
          "internal error: tensor '{}' is added with two dtypes or shapes", tensor.name);
  if (count == 0) return;
  require(data != nullptr, "internal error: tensor '{}' is added without memory", tensor.name);
  impl_->failed = true;  // unless what follows returns
  impl_->write_piece(tensor, begin, count, data);
  impl_->failed = false;
}

nlohmann::json CheckpointWriter::finish_file() {
  require(!impl_->finished && !impl_->failed, "internal error: a checkpoint file that is {} cannot be finished",
          impl_->failed ? "broken" : "finished");
  impl_->failed = true;
  {
    const hdf5::Lock lock;
    impl_->layout->close();
  }
  const StoredFile stored = impl_->write_structure();
  impl_->layout.reset();
  impl_->file.sync();
  impl_->failed = false;
  impl_->finished = true;
  return piece_list(rank_file_name(impl_->rank), stored, impl_->tensors);
}

fs::path CheckpointWriter::publish(const std::vector<nlohmann::json>& piece_lists, const nlohmann::json& state,
                                   const std::string& config_yaml) {
  require(impl_->rank == 0 && impl_->finished && !impl_->published,
          "internal error: a checkpoint is published once, by rank 0, after finish_file()");
  const std::string where = impl_->folder.string();
  Manifest manifest;
  manifest.step = impl_->step;
  manifest.state = state.is_null() ? nlohmann::json::object() : state;
  manifest.config_yaml = config_yaml;
  for (const auto& list : piece_lists) merge_piece_list(manifest, list, where);
  validate(manifest, where);
  for (const auto& [name, stored] : manifest.files) {
    const auto bytes = static_cast<std::int64_t>(File::open_to_read((impl_->folder / name).string()).size());
    require(bytes == stored.bytes, "{} has {} bytes, its writer reported {}", (impl_->folder / name).string(), bytes,
            stored.bytes);
  }
  std::vector<fs::path> strangers;  // files of ranks of an earlier, larger job that was killed here
  std::error_code error;
  for (fs::directory_iterator entry(impl_->folder, error), end; !error && entry != end; entry.increment(error))
    if (!manifest.files.contains(entry->path().filename().string())) strangers.push_back(entry->path());
  for (const auto& stranger : strangers) remove_tree(stranger);

  const std::string text = to_text(manifest);
  const fs::path manifest_path = impl_->folder / kManifestName;
  {
    File file = File::open_or_create(manifest_path.string());
    file.write_at(0, text.data(), text.size());
    file.sync();
  }
  sync_folder(impl_->folder);
  const fs::path target = impl_->run / step_folder_name(impl_->step);
  replace_folder(impl_->folder, target, impl_->run / aside_name(impl_->step));
  impl_->published = true;
  return target;
}

}  // namespace sfa
