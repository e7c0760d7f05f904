"""Gradient inversion loop in plain PyTorch, without tuning: signed Adam on 1 - cosine + TV, in a box.

After Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053), with the axis of frames in the
total variation. It is the loop that a researcher would write; the file has 33 lines, this text included.
"""

import torch


class BareLoop:
    def __init__(self, model, labels, target, start, spatial, temporal):
        self.model, self.labels, self.target = model, labels, target
        self.spatial, self.temporal, self.history = spatial, temporal, []
        self.x = start.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.x], lr=0.1)

    def update(self):
        loss = torch.nn.functional.cross_entropy(self.model(self.x), self.labels)
        return torch.autograd.grad(loss, self.model.parameters(), create_graph=True)

    def run(self, iterations):
        for _ in range(iterations):
            found = self.update()
            product = sum((g * t).sum() for g, t in zip(found, self.target, strict=True))
            norms = [sum(t.square().sum() for t in tensors).sqrt() for tensors in (found, self.target)]
            objective = 1 - product / (norms[0] * norms[1])
            if self.spatial or self.temporal:
                frame, row, column = (self.x.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
                objective = objective + self.spatial * (row + column) + self.temporal * frame
            self.x.grad = torch.autograd.grad(objective, self.x)[0].sign_()
            self.adam.step()
            self.x.data.clamp_(0, 1)
            self.history.append(objective.item())
