// Python bindings of the runner: building a program, and running it without the GIL.
#include <ATen/ScalarOps.h>
#include <ATen/core/jit_type.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Layout.h>
#include <torch/csrc/MemoryFormat.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstdlib>

#ifdef __linux__
#include <malloc.h>
#endif

#include "loop/program.h"

namespace py = pybind11;
using namespace vleak::loop;

namespace {

// ---------------------------------------------------------------------------------------------------------
// Arguments

[[noreturn]] void refuse(py::handle value, const c10::Argument& parameter) {
  throw py::type_error("cannot pass " + py::str(py::type::of(value)).cast<std::string>() + " as " +
                       parameter.type()->str() + " " + parameter.name());
}

template <typename Element>
c10::IValue fill(py::handle value, size_t count) {
  c10::List<Element> list;
  if (py::isinstance<py::sequence>(value))
    for (py::handle item : value) list.push_back(item.cast<Element>());
  else
    for (size_t i = 0; i < count; ++i) list.push_back(value.cast<Element>());
  return list;
}

c10::Scalar scalar(py::handle value) {
  if (PyBool_Check(value.ptr())) return value.cast<bool>();
  if (PyLong_Check(value.ptr())) return value.cast<int64_t>();
  return value.cast<double>();
}

// A number that stands for a tensor does not decide the type of the result.
at::Tensor wrapped_number(py::handle value) {
  at::Tensor number = c10::scalar_to_tensor(scalar(value));
  number.unsafeGetTensorImpl()->set_wrapped_number(true);
  return number;
}

// The schema calls dtypes, layouts and memory formats integers.
std::optional<c10::IValue> torch_object(PyObject* value) {
  if (THPDtype_Check(value))
    return c10::IValue(static_cast<int64_t>(reinterpret_cast<THPDtype*>(value)->scalar_type));
  if (THPLayout_Check(value))
    return c10::IValue(static_cast<int64_t>(reinterpret_cast<THPLayout*>(value)->layout));
  if (THPMemoryFormat_Check(value))
    return c10::IValue(static_cast<int64_t>(reinterpret_cast<THPMemoryFormat*>(value)->memory_format));
  if (THPDevice_Check(value)) return c10::IValue(reinterpret_cast<THPDevice*>(value)->device);
  return std::nullopt;
}

c10::IValue constant_list(py::handle value, const c10::Argument& parameter, const c10::ListType& type) {
  const size_t count = parameter.N().value_or(1);
  switch (type.getElementType()->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return fill<int64_t>(value, count);
    case c10::TypeKind::FloatType:
      return fill<double>(value, count);
    case c10::TypeKind::BoolType:
      return fill<bool>(value, count);
    case c10::TypeKind::TensorType:
      if (py::len(value) == 0) return c10::List<at::Tensor>();
      [[fallthrough]];
    default:
      refuse(value, parameter);
  }
}

c10::IValue constant(py::handle value, const c10::Argument& parameter) {
  if (value.is_none()) return {};
  if (auto object = torch_object(value.ptr())) return *object;
  c10::TypePtr type = parameter.type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  switch (type->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return value.cast<int64_t>();
    case c10::TypeKind::FloatType:
      return value.cast<double>();
    case c10::TypeKind::BoolType:
      return value.cast<bool>();
    case c10::TypeKind::TensorType:
      return wrapped_number(value);
    case c10::TypeKind::NumberType:
      return scalar(value);
    case c10::TypeKind::StringType:
      return value.cast<std::string>();
    case c10::TypeKind::DeviceObjType:
      return c10::Device(value.cast<std::string>());
    case c10::TypeKind::ListType:
      return constant_list(value, parameter, type->expectRef<c10::ListType>());
    default:
      refuse(value, parameter);
  }
}

bool holds_optional(const c10::Argument& parameter) {
  const auto list = parameter.type()->cast<c10::ListType>();
  return list && list->getElementType()->kind() == c10::TypeKind::OptionalType;
}

// Turns one Python argument, in which `Slot` objects stand for values, into an Argument.
struct Template {
  py::object slot_type;

  Reference reference(py::handle value) const {
    return {value.is_none() ? kNone : value.attr("index").cast<int>(), false};
  }

  bool is_slot(py::handle value) const { return py::isinstance(value, slot_type); }

  bool lists_slots(py::handle value) const {
    return (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) &&
           std::any_of(value.begin(), value.end(), [&](py::handle item) { return is_slot(item); });
  }

  Argument argument(py::handle value, const c10::Argument& parameter) const {
    if (is_slot(value)) return {Argument::Kind::value, {}, {reference(value)}};
    if (!lists_slots(value)) return {Argument::Kind::constant, constant(value, parameter), {}};
    Argument list{holds_optional(parameter) ? Argument::Kind::optional_list : Argument::Kind::list, {}, {}};
    for (py::handle item : value) list.slots.push_back(reference(item));
    return list;
  }
};

// Marks the last read of every slot in `freed`: a slot may be read twice by one operator.
void mark_last(std::vector<Argument>& arguments, std::vector<int> freed) {
  for (auto argument = arguments.rbegin(); argument != arguments.rend(); ++argument)
    for (auto read = argument->slots.rbegin(); read != argument->slots.rend(); ++read)
      read->last = std::erase(freed, read->slot) > 0;
}

// ---------------------------------------------------------------------------------------------------------
// Building

Instruction make_instruction(const Template& reader, py::handle description) {
  const auto name = description.attr("name").cast<std::string>();
  const auto overload = description.attr("overload").cast<std::string>();
  const auto given = description.attr("arguments").cast<py::tuple>();
  const auto named = description.attr("keywords").cast<py::dict>();
  Instruction made{c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str()), {}, {}};
  const auto& parameters = made.target.schema().arguments();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const c10::Argument& parameter = parameters[i];
    if (i < given.size())
      made.arguments.push_back(reader.argument(given[i], parameter));
    else if (named.contains(parameter.name()))
      made.arguments.push_back(reader.argument(named[parameter.name().c_str()], parameter));
    else if (parameter.default_value())
      made.arguments.push_back({Argument::Kind::constant, *parameter.default_value(), {}});
    else
      throw py::type_error(name + " lacks its argument " + parameter.name());
  }
  made.results = description.attr("results").cast<std::vector<int>>();
  mark_last(made.arguments, description.attr("freed").cast<std::vector<int>>());
  return made;
}

std::shared_ptr<Program> make_program(py::handle lowered, py::object slot_type) {
  const Template reader{std::move(slot_type)};
  auto program = std::make_shared<Program>();
  program->slots = lowered.attr("slots").cast<int>();
  for (py::handle description : lowered.attr("prologue"))
    program->prologue.push_back(make_instruction(reader, description));
  for (py::handle description : lowered.attr("body"))
    program->body.push_back(make_instruction(reader, description));
  program->outputs = lowered.attr("outputs").cast<std::vector<int>>();
  program->carries = lowered.attr("carries").cast<std::vector<std::pair<int, int>>>();
  program->leftover = lowered.attr("leftover").cast<std::vector<int>>();
  program->settings = lowered.attr("settings").cast<std::optional<int>>();
  program->objective = lowered.attr("objective").cast<int>();
  return program;
}

// ---------------------------------------------------------------------------------------------------------
// Running

py::object runtime_error(const char* message) {
  return py::reinterpret_borrow<py::object>(PyExc_RuntimeError)(message);
}

// Returns (operator, exception) of a failure, to be raised by the caller; the GIL is held.
py::tuple failure(const StepError& error) {
  try {
    std::rethrow_exception(error.cause);
  } catch (py::error_already_set& raised) {
    return py::make_tuple(error.target, raised.value());
  } catch (const c10::Error& raised) {
    return py::make_tuple(error.target, runtime_error(raised.what_without_backtrace()));
  } catch (const std::exception& raised) {
    // A kernel written in Python leaves its exception with the interpreter.
    if (PyErr_Occurred()) return py::make_tuple(error.target, py::error_already_set().value());
    return py::make_tuple(error.target, runtime_error(raised.what()));
  }
}

template <typename Work>
auto without_gil(Work work) {
  py::gil_scoped_release released;
  return work();
}

at::Tensor tensor(py::handle value) { return THPVariable_Unpack(value.ptr()); }

std::unique_ptr<Execution> start(std::shared_ptr<Program> program, const py::dict& held) {
  std::vector<std::pair<int, at::Tensor>> values;
  for (const auto& [slot, value] : held) values.emplace_back(slot.cast<int>(), tensor(value));
  return std::make_unique<Execution>(std::move(program), values);
}

py::object prepare(Execution& execution) {
  try {
    without_gil([&] { execution.prepare(); });
    return py::none();
  } catch (const StepError& error) {
    return failure(error);
  }
}

// Runs the handlers of signals, which may raise; then returns whether the run is to end.
bool pause(const py::object& interrupted) {
  py::gil_scoped_acquire held;
  if (PyErr_CheckSignals()) throw py::error_already_set();
  return interrupted().cast<bool>();
}

// Returns (history, failure or None): nothing that ends a run may lose the iterations before it. What the
// handler of a signal raised is a failure of no operator. interrupted: whether to end between two iterations.
py::tuple run(Execution& execution, int64_t n, const py::object& settings, const py::object& interrupted) {
  const at::Tensor rows = settings.is_none() ? at::Tensor() : tensor(settings);
  std::vector<double> history;
  try {
    without_gil([&] { execution.run(n, rows, history, [&] { return pause(interrupted); }); });
    return py::make_tuple(history, py::none());
  } catch (const StepError& error) {
    return py::make_tuple(history, failure(error));
  } catch (const py::error_already_set& raised) {
    return py::make_tuple(history, py::make_tuple("", raised.value()));
  }
}

py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

py::list outputs(const Execution& execution) {
  py::list wrapped;
  for (const at::Tensor& output : execution.outputs()) wrapped.append(wrap(output));
  return wrapped;
}

// Every iteration asks for the same blocks again. glibc gives large ones back to the system in between, which
// then clears their pages anew: up to half of an iteration's time.
void keep_memory() {
#ifdef __GLIBC__
  // What the user has asked glibc for stands.
  if (std::getenv("MALLOC_MMAP_THRESHOLD_") || std::getenv("MALLOC_TRIM_THRESHOLD_")) return;
  constexpr int kOldGlibcsLimit = 32 << 20;
  if (!mallopt(M_MMAP_THRESHOLD, 1 << 30)) mallopt(M_MMAP_THRESHOLD, kOldGlibcsLimit);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

}  // namespace

PYBIND11_MODULE(vleak_loop, module) {
  keep_memory();
  py::class_<Program, std::shared_ptr<Program>>(module, "Program")
      .def(py::init(&make_program))
      .def("start", &start);
  py::class_<Execution>(module, "Execution")
      .def("prepare", &prepare)
      .def("run", &run)
      .def("value", [](const Execution& execution, int slot) { return wrap(execution.value(slot)); })
      .def("set_value",
           [](Execution& execution, int slot, py::handle value) { execution.set_value(slot, tensor(value)); })
      .def("outputs", &outputs);
}
