// Readers of the three kinds of byte-level BPE files that are in use. Each throws Error naming the file and what is
// wrong.
#pragma once

#include <string>

#include "tokenizer/bpe_tokenizer.h"

namespace sfa {

/// GPT-2's pair of files: vocab.json (token -> id) and merges.txt (one merge a line, best first) beside it.
BpeDefinition read_gpt2_files(const std::string& vocab_path, const std::string& merges_path);

/// Hugging Face's tokenizer.json with a BPE model and byte-level pre-tokenisation.
BpeDefinition read_tokenizer_json(const std::string& path);

/// *.tiktoken: base64 of the token and its rank a line. The file has neither pattern nor special tokens; they are known
/// by the number of ranks: 50256 is GPT-2's, 151643 is Qwen's (NFC; then <|endoftext|>, <|im_start|>, <|im_end|>).
BpeDefinition read_tiktoken(const std::string& path);

/// The bytes of a token that is written in GPT-2's byte-to-character alphabet; throws Error on other characters.
std::string bytes_of_gpt2_characters(const std::string& token, const std::string& where);
/// The inverse.
std::string gpt2_characters_of_bytes(std::string_view bytes);

}  // namespace sfa
