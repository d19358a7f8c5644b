"""The dissimilarity of the clients' gradients, against closed forms and the FedProx paper's own program."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    ModelCheckpoint,
    Partition,
    SlotStrategy,
    TensorData,
)
from fedlightning.analysis import Dissimilarity
from fedlightning.analysis.gradients import GradientSums, deal, evaluating, gradient_sums
from fedlightning.datasets import FakeImages, Synthetic
from fedlightning.execution.model import Replica, flatten_buffers, persistent_buffers
from fedlightning.layout import Layout
from fedlightning.loggers import run_loggers
from fedlightning.models import LogisticRegression
from fedlightning.task import FederatedTask
from fedlightning.testing import Quadratics

SIZES = [3, 5, 11, 20]


class Trace(Callback):
    """The global model and what was measured there, by round."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Tensor, float, float]] = {}

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        if "dissimilarity/B" in trainer.metrics:
            self._keep(trainer, trainer.metrics)

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        if "dissimilarity/B" in metrics:
            assert metrics["dissimilarity/seconds"] > 0
            self._keep(trainer, metrics)

    def _keep(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        measured = metrics["dissimilarity/variance"], metrics["dissimilarity/B"]
        self.found[trainer.round] = trainer.state.server.x.clone(), *measured


def problem() -> tuple[Quadratics, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    roots = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in SIZES]
    curvatures = [root @ root.T + torch.eye(3) for root in roots]
    optima = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in SIZES]
    return Quadratics(curvatures, optima, SIZES, steps=2), curvatures, optima


def measure(gradients: Sequence[Tensor], sizes: Sequence[int]) -> tuple[float, float]:
    """D and B by their definitions."""
    total = sum(sizes)
    mean = sum((n / total * g for n, g in zip(sizes, gradients, strict=True)), torch.zeros_like(gradients[0]))
    variance = sum(float((g - mean).square().sum()) for g in gradients) / len(sizes)
    local = sum(n / total * float(g.square().sum()) for n, g in zip(sizes, gradients, strict=True))
    return variance, (local / float(mean.square().sum())) ** 0.5


def trainer_of(rounds: int, *callbacks: Callback, slots: int = 1, seed: int = 0, logger: Any = False, **options: Any) -> FederatedTrainer:  # fmt: skip
    strategy = SlotStrategy([f"cpu/{i}" for i in range(slots)])
    return FederatedTrainer(rounds, strategy=strategy, callbacks=callbacks, logger=logger, seed=seed, **options)


# -- the numbers ------------------------------------------------------------------------------------------------------
@pytest.mark.quick
@pytest.mark.parametrize("batch_size", [1000, 2])
def test_closed_form_on_quadratics(batch_size: int) -> None:
    data, curvatures, optima = problem()
    trace = Trace()
    trainer = trainer_of(5, Dissimilarity(every=2, batch_size=batch_size), trace)
    trainer.fit(FedAvg(lr=0.05), Quadratics.task([1.0, -1.0, 0.5]), data)
    assert list(trace.found) == [0, 2, 4, 5]
    for x, *found in trace.found.values():
        gradients = [a @ (x - b) for a, b in zip(curvatures, optima, strict=True)]
        assert found == pytest.approx(measure(gradients, SIZES), rel=1e-12)


KERNEL = (
    "5JS<tJjtv*FbIXbP<VyBAq|hdtU&oa<`5n}z)=7`aOYt@+<|&N+<;fTAV+#Vu-<w-8&ZqDP}O|BDE#(4favEuAeEUsVyW%DP={?jQuY$Ql8Ht>mYoGY_(8Ni"
    "^Y;?I_Kk<VUA&0CoMGxcy!tmjC}C+nC@@vNV4a*iW@*d4z;%MY<_e6yoEok@c$(k6EW^@0O>&gJ?0scE0I*HHRDC`^>ZLqBfUiP5ki^tH06qIX@L|S1SV$MW"
    "=o%b8RA(1HwM}=vbcx5k#(~<sg1^tbq$YK~P(6~paMK??0=tO5hPr{iQ1^~Lw*Zd5^0N)TM6Haz;vY;t7MO!RN6<pPgm7U#SQke=Elq8{0ydPs_&QHMU=U|K"
    "gBypw(tj$xS}GR4$S3wal>co$B8U<`Sm=sAU|J16&I~y|c-F1G9=;X6Dl8a2$cKf#0B2A;Ktw0LbnQF7*s=t@Kx@3cS~ikCbDmbd5}JrUSQB2pg2LCmcxTBy"
    "z2K9+?nsrs#8f=KIAd<UV2nvT;xi_`vOfzxl0`W_fDbP|`Aa*#fCFtk;>m`-5cV6r5a^;ku8P^cpld!nys!YieJM)5OxqGZe3Uyr6lrumUavtu0Q^KdNHyv`"
    ")XjK4AcRLeQm}=-+{D^F_*;KH5M0VUBpHxCluDaDp1^y)KIj8J&ge5fjJ`NNmXJ?A&@H<?d$ldTMtDKKAmv-WTxZ2S1kDRRI23R`bS?nC;cEuIcwL4*c+{-D"
    "-?&!3B^iXiMiaQbo+Ac6q=k<@rs*TT#_&Ks)Fu_apsjN}-fodT$i=2T7}#_^j~X(*G?!dHu+&vPP~5UT)Z~jkUd&y-`d-q#4_F$$Si2X!sJV(hNJ8Sha2q&1"
    "k3W&V9H$~aILi?}{S+U*FlL=SII7mYP@;W49$V+V*ltX{2Cxo3;Gc%POAl$jv{rS!RQs8|cosRn5KU`7ATs$p7zuGcXtQZPJdaO4kd9_PSXRBghnFY5=b2Hy"
    "(77_bn#B#ik)4#jV^ndzX3k4K&=%=EkRvEQG%+u}pp(}<>l22)N3aOK$l*0TP^~aM#9UN9*nA~DV6rMcs7i=E_Vm=f@aNb)7~*ukpzohN$S0pYq&#1}8YGK8"
    "&8BC*b_bBX2$y_4KwghLKv#-9!T^#!{tF~NT>mt_VDbAr<PWmFDD^|W)c#VvKs<>&z|fn#Sc(e1zU7>~G3+D0(1rUvz<-3j9#W1zauS3-K$Ud70^Cf#fI4tK"
    "iZ=1R084$m*mp`kICWb-V1Wv~0ELLY04%^e6#9@pM99uPc+7phln(Vh_zP@3VizGkU`@uoQ0aQTh}&{KK(KB;04SBda4u)P6l06N?9E}mbBh(e6nEe~ETE)4"
    "*la+)jKf_%(5DN&ezN(!uS{LOZ6+DMh~=9-$bQ8=xa*cZhS>x@5M`dcMoAVvCdZ0CWMg^0aH@DcAPn9;h(;#9O8<;LkV}y~dZx?0f=QD;0DMh6{Bs08sJ1XZ"
    "kV1975K3=8+iZ)zFiS(eJ3k=4WG0Tj*ryY{Z4V{BQbRAkV&@+|SR59;5>wN?<jQuvkW+WQ@;Z(_GOxnDe;$OszyifQ=vl12FvrfkqfQRKK=_tCkRSlQYP^p="
    "*(r#=m<hf;HYtxjJbGTe9086#BA=SQOx=e*u!s*n!1=&D+5dXJYQJy3%nFab24v>F_}kw-1PO*dO;8xV6h&3NcqaNi3>>LFNXsm}DuH9Z*dRSV$hH?g_=b-@"
    "&@{e1csL}zP(>L&ptqPj99xIJFg;^FXjU&iW|Sqqfg6*)zzLB)ds<h%h#@&WDyWD)z`-260G4My0gPzAxSN~3hFCSe?%fc+*kdC-48Zq2#N>9q;D~xW0HNKz"
    "XhuuDM9M!trDKS`i~k(HXsY==Is>x3x^>gNq{4K*T($*1*3^+c0zOkdWU7<Byp3BvCe@0)!n7W~yM;EsgYAXB(w;m%0V)u_$kbOp;sC<En#hH{a1xHbz>d5;"
    "u9yct#E#-Ueg$^EjHr-4z;ky#fuV4|R5)C|5KA;Y(6s|S;G{FWLQDw0FcJd2_;qSNKv!D6th`G;uo9HKgvzHqb)*KqObu&3h=AI?l*vZEnR<}EkZ$)p@fmTx"
    "R7y3z$aM+55Pf4l9Jgq_0!@y+xD3@j>^L1hz!9`N)UIH@u3d~iK;<qz6jWcnpumtm5M{Z&V(pZ^a520+-0XioBiC%cce@k5==<e8^j-x%{>h=eaFScTD7xo8"
    "03ISfaGEDR<B$!$Tq2S_up7KQ+-aRX$Q}4SY;KIcTH`Uk3fGUlus=>d8@p1zv^|eL0KRWN#Hm-k$XZ;!C7qPMa*^@95Y)Ln+#A+CQ0W@ITJ{A#I4ie3)Wd_l"
    "{#Fw{Bni|#kWXDcv<q)OSX2}}uvHMf0KSa9UWJQ3AZ++O6`YX18C_?-Ae<FE)ee-tkf~liTI#&LP*j>cNSQxAiiMIsRwjYI?T0kJj6!lgL={dx#{Y#reBV_*"
    "p=VgWs0F#bhF%ChMQn_|7;_@M0AOT3pe~2Lr6&r$YafWd==wH2WR%Z6kmByV&}j|5f8PVXok&`~sJQ$+-h7chlly_bTrY<{Xuj9IG`ku;v^a6TtFmamBp-i1"
    "ILHdUY@b@bs$&Q~{~Qp$GiqbLrb8dTn-WpJh>AEp0GBenQZ-q=fLU2S%6^r-C_L9afa@~7VtB#5(#8tDJPQ@R;H;EBaNzd5kV;FwKzq@<yq^NTkVgkSe65GR"
    "zAZ(*(rhU{z@D?cq=-;HL@R>59%+s~HhdR8p=p7>gz)A)dWLGgSZHQG6vXE}y)In7yyuQRu<g`5y)kIM2rYg+NYxm<<j!rq2-OKbV<(2bkPv~s2LKMfT*gv9"
    "|L;Y<3<yEK09i7-1l6QHqQ(|Jyb9et;P{EX=!6ZuSdDQ$*u9KCbe?;?yn`;jAlsTe7)fhBV52}h`#6ifg7p`^!1OD<qUeLZ8v={I0FiaOvXUu2peCg~ZqIhU"
    "hE+kn+yRTeke;NyXd}oyNLzqD$Zl#qWZjBBG+|P{fX%)=CUH7G^d6ACgu+U_O8^DFmhghUK%q)JZgzn_@NkK|(n#mMpyV&S=pp<)Fxpl=aC|O4L?jzN@(xKp"
)  # fmt: skip


def test_the_paper_s_program() -> None:
    """The gradient difference that the authors' TensorFlow program prints in round 0, from the same start."""
    model = LogisticRegression(60, 10)
    kernel = np.frombuffer(base64.b85decode("".join(KERNEL)), "<f4").reshape(60, 10)
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(kernel.T.copy()))
    trainer = trainer_of(1, Dissimilarity(), trace := Trace(), evaluate_every=0, clients_per_round=1)
    trainer.fit(FedAvg(lr=0.01), Classification(model), Synthetic(1, 1, seed=1, batching=Batching(10, steps=1)))
    assert trace.found[0][1] == pytest.approx(112.8914527850192, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ((0.0, 0.0, True), [0.03197, 0.04289, 0.05042]),
        ((0.0, 0.0), [48.67572, 56.32133, 54.64531]),
        ((0.5, 0.5), [66.08126, 72.26383, 78.77507]),
        ((1.0, 1.0), [116.77081, 114.97581, 146.14382]),
    ],
)
def test_reference_values_at_the_start(kind: tuple[Any, ...], expected: list[float]) -> None:
    """Those of an independent float64 program, which rounds to five digits, for the seeds 0, 1 and 2."""
    for seed, variance in enumerate(expected):
        data = Synthetic(*kind, seed=seed, batching=Batching(10, steps=1))
        task = Classification(LogisticRegression.glorot(60, 10, seed=seed))
        trainer_of(1, Dissimilarity(), trace := Trace(), evaluate_every=0, clients_per_round=1).fit(
            FedAvg(), task, data
        )
        assert trace.found[0][1] == pytest.approx(variance, abs=6e-6, rel=1e-6)


class Net(nn.Module):
    """Whatever behaves differently in training: running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def images() -> tuple[FakeImages, FederatedTask]:
    torch.manual_seed(0)
    data = FakeImages(
        "A1d00C5", shape=(3, 8, 8), classes=3, num_train=150, num_test=20, batching=Batching(8), augment=True
    )
    return data, Classification(Net(), 3)


def test_without_dropout_or_augmentation_and_with_running_statistics() -> None:
    """By plain autograd on the task in evaluation mode, after rounds that have moved the running statistics."""
    data, task = images()
    trainer = trainer_of(2, Dissimilarity(), trace := Trace(), evaluate_every=0)
    state = trainer.fit(FedAvg(lr=0.1), task, data)
    trained, start = task.with_parameters(state.server.x).eval(), 0
    for buffer in persistent_buffers(trained).values():
        values = state.buffers[start : start + buffer.numel()].view(buffer.shape)
        buffer.copy_(values if buffer.is_floating_point() else values.round())
        start += buffer.numel()
    assert not torch.equal(state.buffers, flatten_buffers(persistent_buffers(task).values(), torch.device("cpu")))
    gradients, sizes = [], data.clients.sizes.tolist()
    for client in range(5):
        index = data.clients.client(client)
        loss = trained.loss((data.preprocess(data.train.inputs[index]), data.train.targets[index])).mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trained.parameters()))]))
    assert trace.found[2][1:] == pytest.approx(measure([g.double() for g in gradients], sizes), rel=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("gradients", "variance", "b"),
    [([[0.0], [0.0]], 0.0, 1.0), ([[1.0], [-1.0]], 1.0, float("inf")), ([[2.0], [2.0]], 0.0, 1.0)],
)
def test_at_the_edges(gradients: list[list[float]], variance: float, b: float) -> None:
    sums = GradientSums(1, torch.device("cpu"))
    for gradient in gradients:
        sums.add(torch.tensor(gradient, dtype=torch.float64), 4)
    assert (sums.variance, sums.dissimilarity) == (variance, b)


def test_a_gradient_that_is_not_finite_shows() -> None:
    sums = GradientSums(1, torch.device("cpu"))
    sums.add(torch.tensor([float("nan")], dtype=torch.float64), 4)
    assert np.isnan([sums.variance, sums.dissimilarity]).all()


# -- a sample of the clients --------------------------------------------------------------------------------------------
def sampled(seed: int) -> tuple[int, ...]:
    """Which two of the four clients were measured, found by trying all pairs; the same ones in each round."""
    data, curvatures, optima = problem()
    trainer = trainer_of(3, Dissimilarity(num_clients=2), trace := Trace(), seed=seed)
    trainer.fit(FedAvg(lr=0.05), Quadratics.task([1.0, -1.0, 0.5]), data)
    fitting = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for x, *found in trace.found.values():
        gradients = [a @ (x - b) for a, b in zip(curvatures, optima, strict=True)]
        expected = {pair: measure([gradients[k] for k in pair], [SIZES[k] for k in pair]) for pair in fitting}
        fitting = [pair for pair in fitting if found == pytest.approx(expected[pair], rel=1e-10)]
    (pair,) = fitting
    return pair


def test_a_sample_is_the_seed_s_and_stays() -> None:
    assert sampled(0) == sampled(0)
    assert len({sampled(seed) for seed in range(6)}) > 1


def test_more_clients_than_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`num_clients` of Dissimilarity must be in 1…4, but is 5; leave it out"
    ):
        trainer_of(1, Dissimilarity(num_clients=5)).fit(FedAvg(), Quadratics.task([0.0] * 3), problem()[0])


@pytest.mark.quick
@pytest.mark.parametrize("name", ["every", "num_clients", "batch_size"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` of Dissimilarity must be at least 1, but is 0"):
        Dissimilarity(**{name: 0})


# -- what it leaves alone -----------------------------------------------------------------------------------------------
def test_the_run_is_the_same_with_and_without() -> None:
    states = []
    for callbacks in ([], [Dissimilarity()]):
        data, task = images()
        global_state = torch.get_rng_state()
        states.append(trainer_of(2, *callbacks, slots=2).fit(FedAvg(lr=0.1), task, data))
        assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(states[0].server.x, states[1].server.x)
    assert torch.equal(states[0].buffers, states[1].buffers)


def test_the_same_bits_for_any_number_of_slots() -> None:
    found = []
    for slots in (1, 3):
        data = Synthetic(1, 1, seed=1, batching=Batching(10, steps=1))
        task = Classification(LogisticRegression.glorot(60, 10, seed=1))
        trainer = trainer_of(1, Dissimilarity(), trace := Trace(), slots=slots, evaluate_every=0)
        trainer.fit(FedAvg(lr=0.01), task, data)
        found.append([trace.found[t][1:] for t in (0, 1)])
    assert len(deal(range(30), data.clients.sizes)) > 3
    assert found[0] == found[1]


def test_a_resumed_run_measures_the_same(tmp_path: Path) -> None:
    def run(name: str, rounds: int, ckpt_path: Path | None = None) -> list[dict[str, str]]:
        callbacks = [Dissimilarity(every=3, num_clients=2), ModelCheckpoint()]
        trainer = trainer_of(rounds, *callbacks, logger=run_loggers(tmp_path, name))
        trainer.fit(FedAvg(lr=0.05), Quadratics.task([1.0, -1.0, 0.5]), problem()[0], ckpt_path=ckpt_path)
        return list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))

    def measured(rows: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
        return {
            row["step"]: (row["dissimilarity/variance"], row["dissimilarity/B"])
            for row in rows
            if row["dissimilarity/B"]
        }

    whole = measured(run("whole", 7))
    assert list(whole) == ["0", "3", "6", "7"]
    assert list(measured(run("cut", 4))) == ["0", "3", "4"]
    resumed = measured(run("cut", 7, tmp_path / "cut" / "checkpoints" / "last.ckpt"))
    assert {step: resumed[step] for step in whole} == whole


# -- the cost -----------------------------------------------------------------------------------------------------------
def test_the_cost_is_told(said: Callable[[], list[str]]) -> None:
    trainer_of(1, Dissimilarity(every=3)).fit(FedAvg(), Quadratics.task([0.0] * 3), problem()[0])
    cost = "dissimilarity: the gradients of 4 of 4 clients, over 39 examples, after every 3 rounds"
    assert [line for line in said() if line.startswith("dissimilarity")] == [cost]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=400), st.integers(1, 4))
@example([1] * 400, 1)
def test_groups_are_few_and_even(sizes: list[int], stride: int) -> None:
    clients = list(range(0, len(sizes), stride))
    groups = deal(clients, torch.tensor(sizes))
    assert [client for group in groups for client in group] == clients
    assert 1 <= len(groups) <= 16
    costs = [sum(sizes[client] + 100 for client in group) for group in groups]
    assert max(costs) <= sum(costs) / min(16, -(-sum(costs) // 2000)) + max(sizes[client] + 100 for client in clients)


def test_forward_passes_are_large_but_not_larger() -> None:
    """One pass for each client, however small the run's batches are, and several for one with more than the limit."""
    seen: list[int] = []

    class Counting(LogisticRegression):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            return super().forward(inputs)

    train = Examples(torch.randn(45, 4), torch.arange(45) % 3)
    data = TensorData(train, Partition.of(list(torch.arange(45).split([5, 10, 30]))), batching=Batching(2))
    data.setup()
    task = Classification(Counting(4, 3))
    layout = Layout.of(task)
    replica = Replica(task, layout, torch.device("cpu"))
    buffers = torch.zeros(0, dtype=torch.float64)
    sums = gradient_sums(replica, data, data.train, [0, 1, 2], layout.read(task), buffers, 20)
    assert seen == [5, 10, 20, 10]
    assert (sums.examples, sums.clients) == (45, 3)


def test_recurrent_layers_stay_in_training_mode() -> None:
    """cuDNN has no backward pass in evaluation mode. Everything is as before afterwards."""
    net = nn.Sequential(nn.LSTM(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    with evaluating(net):
        assert [layer.training for layer in net] == [True, False, False]
    assert all(layer.training for layer in net.modules())
