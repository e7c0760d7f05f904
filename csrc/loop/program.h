// A captured step as a flat list of operator calls, and its execution without Python.
//
// A slot holds one value. Arguments name slots; a slot that is read for the last time gives its value away,
// so that memory is free as soon as the operator has returned.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace vleak::loop {

constexpr int kNone = -1;

// A slot that is read, and whether this is the last time; kNone stands for None inside a list.
struct Reference {
  int slot;
  bool last;
};

// What an operator gets for one parameter of its schema.
struct Argument {
  enum class Kind { constant, value, list, optional_list };
  Kind kind;
  c10::IValue constant;
  std::vector<Reference> slots;
};

struct Instruction {
  c10::OperatorHandle target;
  std::vector<Argument> arguments;
  // One a tensor that comes back, lists flattened; kNone where nobody reads it.
  std::vector<int> results;
};

// An output, by its place among the outputs, that becomes the next iteration's value of a slot.
struct Carry {
  int output;
  int slot;
};

struct Program {
  int slots = 0;
  std::vector<Instruction> prologue;
  std::vector<Instruction> body;
  std::vector<int> outputs;
  // Slots of outputs that are still held when an iteration ends.
  std::vector<int> leftover;
  std::vector<Carry> carries;
  std::optional<int> settings;
  // Place among the outputs.
  int objective = 0;
};

// An operator failed with `cause`.
struct StepError : std::exception {
  StepError(const Instruction& instruction, std::exception_ptr cause)
      : target(toString(instruction.target.operator_name())), cause(std::move(cause)) {}
  std::string target;
  std::exception_ptr cause;
};

enum class Reason { done, nan, plateau, interrupted };

// When to stop although iterations are left: after `patience` iterations (0: never) in which the best
// objective did not fall by more than tolerance * |best|.
struct Plateau {
  int64_t patience = 0;
  double tolerance = 0.0;
};

// One descent: a program's slots filled with its own values. One thread at a time may run it.
class Bound {
 public:
  // `held` are values of slots that exist before the prologue.
  Bound(std::shared_ptr<const Program> program, const std::vector<std::pair<int, at::Tensor>>& held);

  // Runs the prologue; call it once, before the first run.
  void prepare();

  // Runs up to n iterations and appends their objectives to `history`. Row i of `table`, which is on the
  // device of the settings and has their type, is what iteration i sees of them. `pause` is called now and
  // then between iterations: true ends the run, and it may throw. Values that are carried are never those of
  // half an iteration.
  Reason run(int64_t n, const at::Tensor& table, Plateau plateau, std::vector<double>& history,
             const std::function<bool()>& pause);

  void interrupt() { interrupted_ = true; }
  const at::Tensor& value(int slot) const { return slots_[slot].toTensor(); }
  // Of the last iteration, one that ended with NaN included; empty before the first.
  const std::vector<at::Tensor>& outputs() const { return outputs_; }

 private:
  void execute(const Instruction& instruction);
  double iterate();
  bool stalled(double objective, Plateau plateau);

  std::shared_ptr<const Program> program_;
  std::vector<c10::IValue> slots_;
  torch::jit::Stack stack_;
  std::vector<at::Tensor> outputs_;
  std::atomic<bool> interrupted_ = false;
  double level_ = std::numeric_limits<double>::infinity();
  int64_t since_ = 0;
};

}  // namespace vleak::loop
