#include "loop/program.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <chrono>

namespace vleak::loop {
namespace {

// Often enough for a key press to end a run at once, too rare to cost anything.
constexpr std::chrono::milliseconds kBetweenPauses{100};

c10::IValue take(std::vector<c10::IValue>& slots, Reference reference) {
  c10::IValue& value = slots[reference.slot];
  return reference.last ? std::move(value) : value;
}

template <typename Element>
c10::IValue take_list(std::vector<c10::IValue>& slots, const std::vector<Reference>& references) {
  c10::List<Element> list;
  list.reserve(references.size());
  for (Reference reference : references) {
    if (reference.slot == kNone)
      list.push_back(Element());
    else
      list.push_back(take(slots, reference).toTensor());
  }
  return list;
}

void push(torch::jit::Stack& stack, std::vector<c10::IValue>& slots, const Argument& argument) {
  switch (argument.kind) {
    case Argument::Kind::constant:
      stack.push_back(argument.constant);
      break;
    case Argument::Kind::value:
      stack.push_back(take(slots, argument.slots.front()));
      break;
    case Argument::Kind::list:
      stack.push_back(take_list<at::Tensor>(slots, argument.slots));
      break;
    case Argument::Kind::optional_list:
      stack.push_back(take_list<std::optional<at::Tensor>>(slots, argument.slots));
      break;
  }
}

// Puts what an operator returned into slots, lists flattened.
void store(torch::jit::Stack& stack, std::vector<c10::IValue>& slots, const std::vector<int>& results) {
  size_t next = 0;
  auto keep = [&](c10::IValue&& value) {
    TORCH_CHECK(next < results.size(), "it returned more tensors than when it was captured");
    const int slot = results[next++];
    if (slot != kNone) slots[slot] = std::move(value);
  };
  for (c10::IValue& value : stack) {
    if (value.isTensorList())
      for (at::Tensor& tensor : value.toTensorVector()) keep(std::move(tensor));
    else
      keep(std::move(value));
  }
  TORCH_CHECK(next == results.size(), "it returned fewer tensors than when it was captured");
}

}  // namespace

Execution::Execution(std::shared_ptr<const Program> program,
                     const std::vector<std::pair<int, at::Tensor>>& held)
    : program_(std::move(program)), slots_(program_->slots) {
  for (const auto& [slot, value] : held) slots_[slot] = value;
}

void Execution::prepare() {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  for (const Instruction& instruction : program_->prologue) execute(instruction);
}

void Execution::execute(const Instruction& instruction) {
  try {
    stack_.clear();
    for (const Argument& argument : instruction.arguments) push(stack_, slots_, argument);
    instruction.target.callBoxed(stack_);
    store(stack_, slots_, instruction.results);
    // What an operator read for the last time must not live until the next one.
    stack_.clear();
  } catch (const std::exception&) {
    throw StepError(instruction, std::current_exception());
  }
}

void Execution::iterate(std::vector<double>& history) {
  outputs_.clear();
  for (const Instruction& instruction : program_->body) execute(instruction);
  for (int slot : program_->outputs) outputs_.push_back(slots_[slot].toTensor());
  for (int slot : program_->leftover) slots_[slot] = c10::IValue();
  const at::Tensor objectives = outputs_[program_->objective].to(at::kDouble).contiguous();
  const double* first = objectives.const_data_ptr<double>();
  history.insert(history.end(), first, first + objectives.numel());
  for (const auto& [output, slot] : program_->carries) slots_[slot] = outputs_[output];
}

void Execution::run(int64_t n, const at::Tensor& settings, std::vector<double>& history,
                    const std::function<bool()>& pause) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  auto paused = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < n; ++i) {
    if (const auto now = std::chrono::steady_clock::now(); now - paused > kBetweenPauses) {
      if (pause()) return;
      paused = std::chrono::steady_clock::now();
    }
    if (program_->settings) slots_[*program_->settings] = settings.select(0, i);
    iterate(history);
  }
}

}  // namespace vleak::loop
