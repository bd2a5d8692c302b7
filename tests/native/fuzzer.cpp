// libFuzzer over one entry point of fastmpi._C, named by FASTMPI_ENTRY. The extension is compiled
// in, for coverage; entries.py turns bytes into arguments, in an embedded interpreter. An input
// that is answered by a result, a ValueError or a TypeError is good; any other exception is not.
#include <pybind11/embed.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace py = pybind11;

extern "C" PyObject* PyInit__C();

namespace {

struct Target {
  py::object run_input, extension;
  std::string entry;

  void run(const std::uint8_t* data, std::size_t size) const {
    run_input(extension, entry, py::bytes(reinterpret_cast<const char*>(data), size));
  }
};

const Target& target() {
  static const Target* const made = [] {  // never freed: the interpreter lives as long as we do
    const char* const entry = std::getenv("FASTMPI_ENTRY");
    if (entry == nullptr) throw std::runtime_error("FASTMPI_ENTRY names no entry point");
    PyImport_AppendInittab("_C", &PyInit__C);
    py::initialize_interpreter(false);  // Ctrl-C is libFuzzer's
    return new Target{py::module_::import("entries").attr("run"), py::module_::import("_C"), entry};
  }();
  return *made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    target().run(data, size);
  } catch (const py::error_already_set& error) {
    py::print(error.what());
    py::module_::import("sys").attr("stdout").attr("flush")();
    std::abort();
  }
  return 0;
}
