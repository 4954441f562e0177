#include "train/products_file.h"

#include <fstream>
#include <sstream>

#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/file.h"
#include "core/log.h"

namespace sfa {
namespace {

constexpr const char* kName = "products.txt";

std::string read(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

void restore_products(Context& ctx, const std::filesystem::path& run_folder) {
  if constexpr (kHasCuda) {
    const std::filesystem::path file = run_folder / kName;
    if (!ctx.on_cuda() || !std::filesystem::exists(file)) return;
    if (!cuda_ops::restore_products(ctx.cuda(), read(file)))
      spdlog::info("{}: was written on another card or by another cuBLASLt; algorithms are chosen anew", file.string());
  }
}

void keep_products(const Context& ctx, const std::filesystem::path& run_folder) {
  if constexpr (kHasCuda) {
    if (!ctx.on_cuda()) return;
    const std::filesystem::path file = run_folder / kName;
    const std::string text = cuda_ops::saved_products(ctx.cuda());
    if (read(file) != text) write_whole_file(file.string(), text, true);
  }
}

}  // namespace sfa
