#include "core/hdf5.h"

namespace sfa::hdf5 {
namespace {
std::recursive_mutex& mutex() {
  static std::recursive_mutex instance;
  return instance;
}

template <class T>
T check(T result, const char* what, const std::string& where) {
  if (result < 0) fail("HDF5 could not {} {}: {}", what, where, last_error());
  return result;
}

Handle string_type(std::size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), size);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  return type;
}

// An attribute that exists and is a scalar of the class wanted.
Handle open_scalar(hid_t object, const std::string& name, H5T_class_t wanted) {
  if (H5Aexists(object, name.c_str()) <= 0) return {};
  Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) return {};
  Handle type(H5Aget_type(attribute.get()), H5Tclose);
  Handle space(H5Aget_space(attribute.get()), H5Sclose);
  if (!type.valid() || H5Tget_class(type.get()) != wanted || !space.valid() ||
      H5Sget_simple_extent_npoints(space.get()) != 1)
    return {};
  return attribute;
}
}  // namespace

std::string library_version() {
  const Lock lock;
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) return "unknown";
  return fmt::format("{}.{}.{}", major, minor, release);
}

Lock::Lock() : guard_(mutex()) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string last_error() {
  std::string innermost;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
        auto& text = *static_cast<std::string*>(out);
        if (text.empty() && entry->desc != nullptr) text = entry->desc;
        return 0;
      },
      &innermost);
  return innermost.empty() ? "unknown reason" : innermost;
}

Handle create_file(const std::string& path) {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  H5Pset_alignment(access.get(), 64 * 1024, 4096);
  Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation.get(), false);  // the same content makes the same bytes
  return {check(H5Fcreate(path.c_str(), H5F_ACC_EXCL, creation.get(), access.get()), "create", path), H5Fclose};
}

Handle open_file(const std::string& path) {
  return {check(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), "open", path), H5Fclose};
}

Handle create_dataset(hid_t file, const std::string& name, hid_t type, std::uint64_t count, const void* data) {
  const hsize_t dims[1] = {count};
  Handle space(check(H5Screate_simple(1, dims, nullptr), "describe", name), H5Sclose);
  Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(properties.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(properties.get(), false);
  Handle dataset(check(H5Dcreate2(file, name.c_str(), type, space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                       "create the dataset", name),
                 H5Dclose);
  if (data != nullptr && count > 0)
    check(H5Dwrite(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "write the dataset", name);
  return dataset;
}

std::optional<std::uint64_t> dataset_offset(hid_t dataset) {
  Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  if (!properties.valid() || H5Pget_layout(properties.get()) != H5D_CONTIGUOUS) return std::nullopt;
  const haddr_t offset = H5Dget_offset(dataset);
  if (offset == HADDR_UNDEF) return std::nullopt;
  return offset;
}

std::uint64_t dataset_length(hid_t dataset, const std::string& where) {
  Handle space(check(H5Dget_space(dataset), "read the shape of", where), H5Sclose);
  require(H5Sget_simple_extent_ndims(space.get()) == 1, "{} is not one-dimensional", where);
  hsize_t dims[1] = {0};
  check(H5Sget_simple_extent_dims(space.get(), dims, nullptr), "read the shape of", where);
  return dims[0];
}

void write_attribute(hid_t object, const std::string& name, std::int64_t value) {
  Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Handle attribute(check(H5Acreate2(object, name.c_str(), H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         "create the attribute", name),
                   H5Aclose);
  check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), "write the attribute", name);
}

void write_attribute(hid_t object, const std::string& name, const std::string& value) {
  Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type = string_type(value.empty() ? 1 : value.size());
  Handle attribute(check(H5Acreate2(object, name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                         "create the attribute", name),
                   H5Aclose);
  check(H5Awrite(attribute.get(), type.get(), value.empty() ? "\0" : value.data()), "write the attribute", name);
}

std::optional<std::int64_t> read_int(hid_t object, const std::string& name) {
  const Handle attribute = open_scalar(object, name, H5T_INTEGER);
  std::int64_t value = 0;
  if (!attribute.valid() || H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) return std::nullopt;
  return value;
}

std::optional<std::string> read_string(hid_t object, const std::string& name) {
  const Handle attribute = open_scalar(object, name, H5T_STRING);
  if (!attribute.valid()) return std::nullopt;
  Handle stored(H5Aget_type(attribute.get()), H5Tclose);
  if (H5Tis_variable_str(stored.get()) != 0) return std::nullopt;
  std::string value(H5Tget_size(stored.get()), '\0');
  const Handle type = string_type(value.size());
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) return std::nullopt;
  if (const auto end = value.find('\0'); end != std::string::npos) value.resize(end);
  return value;
}

}  // namespace sfa::hdf5
