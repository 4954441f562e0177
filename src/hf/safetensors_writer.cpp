// SafetensorsWriter of safetensors.h.
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "hf/safetensors.h"

namespace sfa::hf {

std::uint64_t SafetensorsWriter::Planned::bytes() const {
  std::uint64_t n = size_of_dtype(dtype);
  for (const std::int64_t dim : shape) n *= static_cast<std::uint64_t>(dim);
  return n;
}

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<Planned> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)), temporary_(path_ + ".tmp"), tensors_(std::move(tensors)) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (const Planned& t : tensors_) {
    require(!header.contains(t.name), "internal error: the tensor '{}' is written twice", t.name);
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {at, at + t.bytes()}}};
    at += t.bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that tensors lie at multiples of 8
  const std::uint64_t length = text.size();
  file_ = File::create(temporary_);
  file_.write_at(0, &length, sizeof length);
  file_.write_at(sizeof length, text.data(), text.size());
  offset_ = sizeof length + length;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (!finished_) ::unlink(temporary_.c_str());
}

void SafetensorsWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  require(next_ < tensors_.size() && tensors_[next_].name == name && tensors_[next_].bytes() == bytes.size(),
          "internal error: the tensor '{}' was not planned here", name);
  file_.write_at(offset_, bytes.data(), bytes.size());
  offset_ += bytes.size();
  ++next_;
}

void SafetensorsWriter::finish() {
  require(next_ == tensors_.size(), "internal error: a safetensors file lacks tensors");
  file_.sync();
  rename_into_place(temporary_, path_, false);
  finished_ = true;
}

}  // namespace sfa::hf
