# What is installed: the header, the CMake package and the pkg-config file, which both find the header wherever
# CMAKE_INSTALL_INCLUDEDIR and CMAKE_INSTALL_DATADIR put them; and the shared library where it is built.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/hyperattn)
set(pkgconfig_dir ${CMAKE_INSTALL_DATADIR}/pkgconfig)

install(FILES hyperattn.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS hyperattn EXPORT hyperattn-targets)
set(for_any_machine ARCH_INDEPENDENT)
if(HYPERATTN_SHARED)
  set(for_any_machine)
  install(TARGETS hyperattn_shared EXPORT hyperattn-targets
          RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
          LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(EXPORT hyperattn-targets NAMESPACE hyperattn:: DESTINATION ${package_dir})
set(version_file ${CMAKE_CURRENT_BINARY_DIR}/hyperattn-config-version.cmake)
write_basic_package_version_file(${version_file} COMPATIBILITY SameMinorVersion ${for_any_machine})
# That file compares texts; EXACT is true of 0.1 where the version is 0.1.0.
file(READ ${version_file} basic)
file(WRITE ${version_file} "if(PACKAGE_FIND_VERSION VERSION_EQUAL ${PROJECT_VERSION} AND NOT PACKAGE_FIND_VERSION_RANGE)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
${basic}")
install(FILES cmake/hyperattn-config.cmake ${version_file} DESTINATION ${package_dir})

# Relative to the file itself, so that the folder may be moved, unless the user chose absolute folders. A space ends an
# option there.
if(IS_ABSOLUTE "${CMAKE_INSTALL_DATADIR}")
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH up "/${pkgconfig_dir}" /)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_prefix "\${pcfiledir}/${up}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(pc_includedir ${CMAKE_INSTALL_INCLUDEDIR})
else()
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
string(REPLACE " " "\\ " pc_prefix "${pc_prefix}")
string(REPLACE " " "\\ " pc_includedir "${pc_includedir}")
configure_file(cmake/hyperattn.pc.in hyperattn.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/hyperattn.pc DESTINATION ${pkgconfig_dir})
