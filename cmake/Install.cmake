# `cmake --install`: the programs, the public headers, one static library per room, and the CMake package
# MoECollab, whose target MoECollab::moecollab stands for all rooms.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/MoECollab)

get_property(rooms GLOBAL PROPERTY MOECOLLAB_ROOMS)
add_library(moecollab_rooms INTERFACE)
target_link_libraries(moecollab_rooms INTERFACE ${rooms})
set_target_properties(moecollab_rooms PROPERTIES EXPORT_NAME moecollab)
install(TARGETS moecollab_rooms moecollab_flags ${rooms} EXPORT MoECollabTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/moecollab DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")

foreach(program moecollab moecollab-prepare)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(EXPORT MoECollabTargets NAMESPACE MoECollab:: DESTINATION ${package_dir})
configure_package_config_file(cmake/MoECollabConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/MoECollabConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/MoECollabConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/MoECollabConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/MoECollabConfigVersion.cmake
  DESTINATION ${package_dir})
