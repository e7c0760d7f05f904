// A captured step as a flat list of operator calls, and its execution without Python.
//
// A slot holds one value. Arguments name slots; the last read of a slot moves its value out, so that its
// memory is free as soon as the operator has returned. Nothing here decides when a descent ends: the caller
// does, from the objectives (vleak/descent/runner.py).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <exception>
#include <functional>
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

struct Program {
  int slots = 0;
  std::vector<Instruction> prologue;
  std::vector<Instruction> body;
  std::vector<int> outputs;
  // Slots of outputs that are still held when an iteration ends.
  std::vector<int> leftover;
  // Outputs, by their places among the outputs, and the slots of which they become the next values.
  std::vector<std::pair<int, int>> carries;
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

// One descent: a program with the values of its slots. One thread at a time may run it.
class Execution {
 public:
  // `held` are values of slots that exist before the prologue.
  Execution(std::shared_ptr<const Program> program, const std::vector<std::pair<int, at::Tensor>>& held);

  // Runs the prologue; call it once, before the first run.
  void prepare();

  // Runs up to n iterations and appends the objectives of each, one a trial, to `history`. Row i of
  // `settings`, which is on the device of that input and has its type, is what iteration i sees of it.
  // `pause` is called now and then between iterations: true ends the run, and it may throw. Carried values
  // are never those of half an iteration.
  void run(int64_t n, const at::Tensor& settings, std::vector<double>& history,
           const std::function<bool()>& pause);

  void set_value(int slot, at::Tensor value) { slots_[slot] = std::move(value); }
  const at::Tensor& value(int slot) const { return slots_[slot].toTensor(); }
  // Of the last iteration; empty before the first.
  const std::vector<at::Tensor>& outputs() const { return outputs_; }

 private:
  void execute(const Instruction& instruction);
  void iterate(std::vector<double>& history);

  std::shared_ptr<const Program> program_;
  std::vector<c10::IValue> slots_;
  torch::jit::Stack stack_;
  std::vector<at::Tensor> outputs_;
};

}  // namespace vleak::loop
