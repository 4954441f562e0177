// sfa doctor [CONFIG] [key=value...]
#include <fmt/core.h>

#include <cstdio>
#include <optional>

#include "analysis/doctor.h"
#include "app/commands.h"
#include "core/error.h"

namespace sfa::app {
namespace {

struct DoctorOptions {
  std::string config;
  std::vector<std::string> overrides;
  bool json = false;
};

void doctor(const DoctorOptions& o) {
  std::optional<Config> config;
  if (!o.config.empty()) config = load_config(o.config, o.overrides);
  const Diagnosis diagnosis = diagnose(config ? &*config : nullptr);
  fmt::print("{}", o.json ? diagnosis_json(diagnosis).dump(2) + "\n" : diagnosis_text(diagnosis));
  std::fflush(stdout);
  std::string broken;
  for (const Finding& f : diagnosis.findings)
    if (f.level == Finding::Level::broken) broken += (broken.empty() ? "" : ", ") + f.what;
  require(diagnosis.healthy(), "something needed is broken: {}", broken);
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  auto o = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand(
      "doctor",
      "What was built in, what this machine has, what is missing and how to get it; exit code 1 when "
      "something needed is broken");
  command->add_option("config", o->config, "a run's YAML file: also checks its device, memory and disk");
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_flag("--json", o->json, "print one JSON object");
  command->callback([o] { doctor(*o); });
}

}  // namespace sfa::app
