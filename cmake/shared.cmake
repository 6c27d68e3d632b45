# The shared library, libhyperattn.so: it exports the functions of the interface and nothing else (shared.c). Before
# version 1, each minor version has an interface of its own.
add_library(hyperattn_shared SHARED cmake/shared.c)
if(NOT TARGET hyperattn::shared)
  add_library(hyperattn::shared ALIAS hyperattn_shared)
endif()
target_link_libraries(hyperattn_shared PUBLIC hyperattn)
set_target_properties(
  hyperattn_shared
  PROPERTIES OUTPUT_NAME hyperattn
             EXPORT_NAME shared
             VERSION ${PROJECT_VERSION}
             SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
             C_VISIBILITY_PRESET hidden
             C_STANDARD 11
             C_EXTENSIONS OFF)
