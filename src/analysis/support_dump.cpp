#include "analysis/support_dump.h"

#include <fmt/format.h>

#include <filesystem>

#include "core/error.h"
#include "core/hdf5.h"

namespace sfa {
namespace {

constexpr const char* kFormat = "sfa.support";

std::int64_t count_in(hid_t file, const std::string& name, const std::string& path) {
  const auto value = hdf5::read_int(file, name);
  require(value.has_value() && *value >= 1, "{}: attribute {} is missing or not positive", path, name);
  return *value;
}

std::vector<float> read_rows(hid_t file, const std::string& name, std::int64_t count, const std::string& path) {
  const hdf5::Handle dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
  require(dataset.valid(), "{}: dataset {} is missing", path, name);
  const std::uint64_t length = hdf5::dataset_length(dataset.get(), path + ": " + name);
  require(length == static_cast<std::uint64_t>(count), "{}: dataset {} has {} elements, its attributes say {}", path,
          name, length, count);
  std::vector<float> rows(static_cast<std::size_t>(count));
  require(H5Dread(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows.data()) >= 0, "{}: {}: {}", path,
          name, hdf5::last_error());
  return rows;
}

}  // namespace

void SupportDump::write(const std::string& path) const {
  const hdf5::Lock lock;
  require(!std::filesystem::exists(path), "{}: exists already", path);
  const std::string temporary = path + ".tmp";
  std::filesystem::remove(temporary);
  {
    const hdf5::Handle file = hdf5::create_file(temporary);
    hdf5::write_attribute(file.get(), "format", std::string(kFormat));
    hdf5::write_attribute(file.get(), "version", std::int64_t{1});
    hdf5::write_attribute(file.get(), "tokens", tokens);
    hdf5::write_attribute(file.get(), "layers", static_cast<std::int64_t>(q.size()));
    hdf5::write_attribute(file.get(), "heads", heads);
    hdf5::write_attribute(file.get(), "kv_heads", kv_heads);
    hdf5::write_attribute(file.get(), "head_dim", head_dim);
    for (std::size_t l = 0; l < q.size(); ++l) {
      hdf5::create_dataset(file.get(), fmt::format("q{}", l), H5T_IEEE_F32LE, q[l].size(), q[l].data());
      hdf5::create_dataset(file.get(), fmt::format("k{}", l), H5T_IEEE_F32LE, k[l].size(), k[l].data());
    }
  }
  std::filesystem::rename(temporary, path);
}

SupportDump SupportDump::read(const std::string& path) {
  const hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file(path);
  require(hdf5::read_string(file.get(), "format") == kFormat && hdf5::read_int(file.get(), "version") == 1,
          "{}: is not a dump of supports (attribute format '{}', version 1); `sfa analyze support` makes one", path,
          kFormat);
  SupportDump dump;
  dump.tokens = count_in(file.get(), "tokens", path);
  dump.heads = count_in(file.get(), "heads", path);
  dump.kv_heads = count_in(file.get(), "kv_heads", path);
  dump.head_dim = count_in(file.get(), "head_dim", path);
  const std::int64_t layers = count_in(file.get(), "layers", path);
  for (std::int64_t l = 0; l < layers; ++l) {
    dump.q.push_back(read_rows(file.get(), fmt::format("q{}", l), dump.tokens * dump.heads * dump.head_dim, path));
    dump.k.push_back(read_rows(file.get(), fmt::format("k{}", l), dump.tokens * dump.kv_heads * dump.head_dim, path));
  }
  return dump;
}

}  // namespace sfa
