#include "eval/task.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "data/byte_stream.h"
#include "tokenizer/unicode.h"

namespace sfa {
namespace {

using Json = nlohmann::json;

std::string read_all(const std::string& path) {
  const std::unique_ptr<ByteStream> stream = open_byte_stream(path);
  std::string text, part(std::size_t{1} << 20, '\0');
  for (;;) {
    const std::size_t n = stream->read(part.data(), part.size());
    text.append(part, 0, n);
    if (n < part.size()) return text;
  }
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (leading_space(line) < line.size()) lines.push_back(std::move(line));
    at = end + 1;
  }
  return lines;
}

// The records of a file of JSON lines, or of one array.
std::vector<Json> read_records(const std::string& path, std::int64_t limit) {
  const std::string text = read_all(path);
  require(valid_utf8_prefix(text) == text.size(), "{}: is not valid UTF-8 at byte {}", path, valid_utf8_prefix(text));
  std::vector<Json> records;
  const std::size_t begin = leading_space(text);
  if (begin < text.size() && text[begin] == '[') {
    const Json whole = Json::parse(text, nullptr, false);
    require(whole.is_array(), "{}: begins like a JSON array of records, but is none", path);
    records.assign(whole.begin(), whole.end());
  } else {
    for (const std::string& line : lines_of(text)) {
      if (limit > 0 && static_cast<std::int64_t>(records.size()) == limit) break;
      records.push_back(Json::parse(line, nullptr, false));
    }
  }
  require(!records.empty(), "{}: holds no record", path);
  if (limit > 0) records.resize(std::min(records.size(), static_cast<std::size_t>(limit)));
  for (std::size_t i = 0; i < records.size(); ++i)
    require(records[i].is_object(), "{}: record {} is no JSON object", path, i + 1);
  return records;
}

// One record with the place that messages name.
struct Record {
  const Json& json;
  const std::string& file;
  std::size_t number;  // from 1

  [[nodiscard]] const Json& at(const Json& object, const char* key) const {
    const auto found = object.find(key);
    require(found != object.end(), "{}: record {} has no \"{}\"", file, number, key);
    return *found;
  }
  [[nodiscard]] std::string text(const Json& object, const char* key) const {
    const Json& value = at(object, key);
    require(value.is_string(), "{}: record {}: \"{}\" is no text", file, number, key);
    return value.get<std::string>();
  }
  [[nodiscard]] std::string text(const char* key) const { return text(json, key); }
  /// The text of every element of a list.
  [[nodiscard]] std::vector<std::string> texts(const Json& list, const char* what) const {
    require(list.is_array() && !list.empty(), "{}: record {}: \"{}\" is no list of texts", file, number, what);
    std::vector<std::string> out;
    for (const Json& value : list) {
      require(value.is_string(), "{}: record {}: \"{}\" is no list of texts", file, number, what);
      out.push_back(value.get<std::string>());
    }
    return out;
  }
  /// A label from 0, written as a number or as text.
  [[nodiscard]] std::size_t label(const Json& value, std::size_t choices) const {
    std::optional<std::int64_t> n;
    if (value.is_number_integer()) n = value.get<std::int64_t>();
    if (value.is_string()) {
      const std::string digits = value.get<std::string>();
      if (digits.size() == 1 && digits[0] >= '0' && digits[0] <= '9') n = digits[0] - '0';
    }
    require(n && *n >= 0 && *n < static_cast<std::int64_t>(choices),
            "{}: record {}: the label {} is none of 0 to {} (a file without answers can't be scored)", file, number,
            value.dump(), choices - 1);
    return static_cast<std::size_t>(*n);
  }
};

std::vector<std::string> behind_a_space(const std::vector<std::string>& choices) {
  std::vector<std::string> out;
  for (const std::string& c : choices) out.push_back(" " + c);
  return out;
}

std::string question(const std::string& text) {
  return "Question: " + text + "\nAnswer:";
}

TaskItem lambada_item(const Record& r) {
  const std::string text = r.text("text");
  const std::size_t space = text.rfind(' ');
  require(space != std::string::npos && space + 1 < text.size(),
          "{}: record {}: the text has no last word behind a space", r.file, r.number);
  return {text.substr(0, space), {text.substr(space)}, 0};
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

// HellaSwag's texts from WikiHow carry markup in brackets, which a bracket on the same line ends.
std::string without_markup(std::string text) {
  text.erase(text.size() - trailing_space(text));
  text.erase(0, leading_space(text));
  replace_all(text, " [title]", ". ");
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t open = std::min(text.find('[', at), text.size());
    const std::size_t close = text.find_first_of("]\n", open);
    const bool markup = close != std::string::npos && text[close] == ']';
    out.append(text, at, open - at + (markup || open == text.size() ? 0 : 1));
    at = markup ? close + 1 : open + 1;
  }
  // Pairs of spaces become one, from the left, once.
  std::string single;
  for (std::size_t i = 0; i < out.size(); ++i) {
    single += out[i];
    if (out[i] == ' ' && i + 1 < out.size() && out[i + 1] == ' ') ++i;
  }
  return single;
}

TaskItem hellaswag_item(const Record& r) {
  const std::string context = r.text("ctx_a") + " " + capitalized(r.text("ctx_b"));
  TaskItem item;
  item.context = without_markup(r.text("activity_label") + ": " + context);
  std::vector<std::string> endings = r.texts(r.at(r.json, "endings"), "endings");
  for (std::string& ending : endings) ending = without_markup(ending);
  item.continuations = behind_a_space(endings);
  item.gold = r.label(r.at(r.json, "label"), endings.size());
  return item;
}

TaskItem piqa_item(const Record& r, const std::vector<std::string>& labels) {
  TaskItem item{question(r.text("goal")), behind_a_space({r.text("sol1"), r.text("sol2")}), 0};
  if (r.json.contains("label")) {
    item.gold = r.label(r.json["label"], 2);
  } else {
    require(r.number <= labels.size(), "{}: record {} has no \"label\", and no label file has its line (--labels)",
            r.file, r.number);
    item.gold = r.label(Json(labels[r.number - 1]), 2);
  }
  return item;
}

TaskItem arc_item(const Record& r) {
  const Json& asked = r.at(r.json, "question");
  const bool nested = asked.is_object();
  const Json& choices = r.at(nested ? asked : r.json, "choices");
  std::vector<std::string> texts, names;
  if (choices.is_array()) {
    for (const Json& choice : choices) {
      texts.push_back(r.text(choice, "text"));
      names.push_back(r.text(choice, "label"));
    }
    require(!texts.empty(), "{}: record {} has no choice", r.file, r.number);
  } else {
    texts = r.texts(r.at(choices, "text"), "text");
    names = r.texts(r.at(choices, "label"), "label");
  }
  const std::string answer = r.text("answerKey");
  const auto gold = std::find(names.begin(), names.end(), answer);
  require(gold != names.end() && names.size() == texts.size(),
          "{}: record {}: the answer '{}' is none of its choices' labels", r.file, r.number, answer);
  return {question(r.text(nested ? asked : r.json, nested ? "stem" : "question")), behind_a_space(texts),
          static_cast<std::size_t>(gold - names.begin())};
}

// Where piqa's labels lie: as given, or beside the records.
std::vector<std::string> piqa_labels(const std::string& file, const std::string& labels) {
  std::filesystem::path path = labels;
  if (labels.empty()) {
    const std::filesystem::path records = file;
    path = records.parent_path() / (records.stem().string() + "-labels.lst");
    if (!std::filesystem::exists(path)) return {};
  }
  std::vector<std::string> lines = lines_of(read_all(path.string()));
  for (std::string& line : lines) line.erase(line.size() - trailing_space(line));
  return lines;
}

}  // namespace

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names{"lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge"};
  return names;
}

Task read_task(const std::string& name, const std::string& file, const std::string& labels, std::int64_t limit) {
  require(std::find(task_names().begin(), task_names().end(), name) != task_names().end(),
          "there is no task '{}'; there are {}", name, fmt::join(task_names(), ", "));
  require(labels.empty() || name == "piqa", "--labels: only piqa keeps its labels in a file of their own");
  require(limit >= 0, "--limit: must not be negative, got {}", limit);
  const std::vector<Json> records = read_records(file, limit);
  const std::vector<std::string> own = name == "piqa" ? piqa_labels(file, labels) : std::vector<std::string>{};
  Task task{name, name != "lambada_openai", {}};
  for (std::size_t i = 0; i < records.size(); ++i) {
    const Record r{records[i], file, i + 1};
    if (name == "lambada_openai")
      task.items.push_back(lambada_item(r));
    else if (name == "hellaswag")
      task.items.push_back(hellaswag_item(r));
    else if (name == "piqa")
      task.items.push_back(piqa_item(r, own));
    else
      task.items.push_back(arc_item(r));
  }
  return task;
}

}  // namespace sfa
