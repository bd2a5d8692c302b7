// numpy in and out: arguments are C-contiguous, aligned arrays of the exact dtype, results own the
// memory of the vector they were made from.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <utility>
#include <vector>

namespace fastmpi {

namespace py = pybind11;

// An argument that is not converted: any other array is a TypeError.
template <typename T>
class Array : public py::array_t<T, py::array::c_style> {
 public:
  using Base = py::array_t<T, py::array::c_style>;
  using Base::Base;

  static bool check_(py::handle object) {
    constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    return Base::check_(object) && py::detail::check_flags(object.ptr(), aligned);
  }
};

template <typename T>
py::array_t<T> to_numpy(std::vector<T> values, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  py::capsule free_when_done(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owner.release();
  return py::array_t<T>(std::move(shape), data, free_when_done);
}

template <typename T>
py::array_t<T> to_numpy(std::vector<T> values) {
  const auto size = static_cast<py::ssize_t>(values.size());
  return to_numpy(std::move(values), {size});
}

}  // namespace fastmpi

// Signatures show it as the numpy array that it is.
template <typename T>
struct pybind11::detail::handle_type_name<fastmpi::Array<T>>
    : pybind11::detail::handle_type_name<typename fastmpi::Array<T>::Base> {};
