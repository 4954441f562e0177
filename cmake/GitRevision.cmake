# Run at every build: writes OUTPUT, a header with the revision of SOURCE and whether files that git knows differ from it. The file
# is touched only when that changes. Without git, or outside a checkout, the revision is "unknown".
find_program(GIT git)
set(revision "unknown")
set(dirty "false")
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --show-toplevel OUTPUT_VARIABLE top OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  get_filename_component(source "${SOURCE}" REALPATH)
  # A tree without a history of its own may lie inside somebody else's checkout.
  if(top STREQUAL source)
    execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse HEAD OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    execute_process(COMMAND ${GIT} -C ${SOURCE} --no-optional-locks status --porcelain --untracked-files=no OUTPUT_VARIABLE changes ERROR_QUIET)
    if(head)
      set(revision "${head}")
      if(changes)
        set(dirty "true")
      endif()
    endif()
  endif()
endif()
set(text "// Written by cmake/GitRevision.cmake.
#pragma once
namespace sfa {
inline constexpr const char* kGitRevision = \"${revision}\";
inline constexpr bool kGitDirty = ${dirty};
}  // namespace sfa
")
set(before "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT before STREQUAL text)
  file(WRITE ${OUTPUT} "${text}")
endif()
