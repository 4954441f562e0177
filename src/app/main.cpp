// The command line: subcommands, and one place where an exception becomes one line and an exit code.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "app/commands.h"
#include "core/build_config.h"
#include "core/error.h"
#include "core/log.h"

namespace {

// OpenMP's threads wait for work by spinning, unless told otherwise before the process starts. Where cores are shared
// (another job, a container's quota, BLAS's own threads) spinning made steps of small models several times longer. So
// the program starts itself once more with threads that sleep, unless the user has chosen.
void wait_without_spinning(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  if (::setenv("OMP_WAIT_POLICY", "passive", 1) == 0) ::execv("/proc/self/exe", argv);
  // When that is not possible the program goes on as it is.
}

// "there is no command 'bogus' (sfa --help)" where CLI11 only knows that one is required; empty where that is not it.
std::string unknown_command(const CLI::App& app) {
  std::string path = "sfa";
  const CLI::App* last = &app;
  while (!last->get_subcommands().empty()) {
    last = last->get_subcommands().front();
    path += " " + last->get_name();
  }
  const std::vector<std::string> rest = app.remaining(true);
  if (last->get_require_subcommand_min() == 0 || rest.empty()) return "";
  return fmt::format("there is no command '{}' ({} --help)", rest.front(), path);
}

}  // namespace

int main(int argc, char** argv) {
  wait_without_spinning(argv);
  CLI::App app{"Pretraining of language models with feature-sparse attention"};
  app.name("sfa");
  app.set_version_flag("--version", sfa::kVersion);
  app.require_subcommand(1);
  sfa::start_logging();
  sfa::app::add_data_command(app);
  sfa::app::add_train_command(app);
  sfa::app::add_eval_command(app);
  sfa::app::add_generate_command(app);
  sfa::app::add_convert_command(app);
  sfa::app::add_config_command(app);
  sfa::app::add_compare_command(app);
  sfa::app::add_flops_command(app);
  sfa::app::add_plan_command(app);
  sfa::app::add_doctor_command(app);
  sfa::app::add_analyze_command(app);
  sfa::app::add_checkpoint_command(app);
  sfa::app::add_bench_command(app);
  try {
    app.parse(argc, argv);
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
    std::fprintf(stderr, "sfa: standard output can't be written: %s\n", std::strerror(errno));
    return 1;
  } catch (const CLI::ParseError& e) {
    if (const std::string why = e.get_exit_code() == 0 ? "" : unknown_command(app); !why.empty()) {
      std::fprintf(stderr, "sfa: %s\n", why.c_str());
      return 2;
    }
    const int code = app.exit(e);
    return code == 0 ? 0 : 2;
  } catch (const sfa::UsageError& e) {
    std::fprintf(stderr, "sfa: %s\n", e.what());
    return 2;
  } catch (const std::filesystem::filesystem_error& e) {
    std::fprintf(stderr, "sfa: %s: %s\n", e.path1().c_str(), e.code().message().c_str());
    return 1;
  } catch (const std::exception& e) {
    if (*e.what() != '\0')
      std::fprintf(stderr, "sfa: %s\n", e.what());
    else  // of many ranks the first says what was wrong; a launcher ends it when another has ended before
      std::this_thread::sleep_for(std::chrono::seconds(3));
    return 1;
  }
}
