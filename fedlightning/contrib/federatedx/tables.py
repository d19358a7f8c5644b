"""What the spellings of FederatedX are here."""

SECTIONS = ("workconfig", "client_trainer_arguments", "server_arguments", "cuda_argments", "fedopt", "hyerparams")
RECIPES = {
    "cifar10": "cifar10", "cifar100": "cifar100", "fashionmnist": "fashion_mnist", "emnistcr": "emnist",
    "emnistae": "emnist_autoencoder", "stackoverflow": "stackoverflow", "shakespeare": "shakespeare",
}  # fmt: skip
SAME = {
    "net_name": "model", "lr": "lr", "batch_size": "batch_size", "weight_decay": "weight_decay", "clip_grad": "clip_norm",
    "commu_times": "rounds", "test_interval": "evaluate_every",
}  # fmt: skip
LEFT_OUT = {
    "workconfig": {
        "root_path": "runs lie in logs/", "libs": "the recipe is the library", "keepnet": "a run keeps its checkpoints",
        "x_start": "the start model comes from the seed", "read_baselines": "TensorBoard shows runs side by side",
    },
    "client_trainer_arguments": {
        "util_loss": "a client takes the steps it is told", "momentum": "it was stored and never used",
        "lossf": "the recipe's task has its loss", "early_stop": "a client takes the steps it is told",
        "noise": "there is no such thing here", "num_works": "the data lie in memory", "test_per_epoch": "it was never used",
    },
    "server_arguments": {
        "test_batch_size": "evaluation chooses its own, and its result does not depend on it",
        "total_client_num": "it was never used; the partition says how many there are",
    },
    "fedopt": {"weight_decay": "it was of Lamb alone, which is not here", "nao": "there is no such method here"},
    "hyerparams": {"fednao": "there is no such method here", "ours_grad_decay": "there is no such method here"},
}  # fmt: skip
HYPER = {
    "fedmpx": (("fedmpx", "mpx"),),
    "prox": (("fedprox", "mu"), ("dualprox", "mu")),
    "dualprox": (("dualprox", "lam"),),
    "fednar": (("fednar", "weight_decay"),),
    "fedlesam": (("fedlesam", "rho"),),
    "fedgm": (("fedgm", "beta"), ("fedgm", "nu")),
    "fedinit": (("fedinit", "beta"),),
    "deltasgd": (("deltasgd", "gamma"),),
    "fedavgm": (("fedcm", "beta"),),
}
PLAIN = {
    "fedavg": "fedavg", "server": "fedavg", "fedavgplus": "fedavg", "fedsgd": "fedavg", "fedsgdm": "fedavgm",
    "fedavgm": "fedcm", "fedexp": "fedexp", "fedgm": "fedgm", "fedinit": "fedinit", "fedlesam": "fedlesam",
    "scaffold": "scaffold", "scaffnew": "scaffnew", "fedprox": "fedprox", "dane": "fedprox", "deltasgd": "deltasgd",
    "dualprox": "dualprox", "fednar": "fednar",
}  # fmt: skip
ADAPTIVE = {name: name for name in ("fedadam", "fedams", "fedadagrad", "fedmpx")}
TORCH = {"fedadam": (1e-8, 0.0), "fedams": (1e-8, 0.0), "fedyogi": (1e-3, 1e-6), "fedmpx": (1e-8, 0.0)}
"""ε and the first v of the server's optimisers there, all of which correct the bias."""
READ = {
    "workconfig": ("exname", "alpha", "clients_num", "close_weight_by_samle_nums", "net_name"),
    "client_trainer_arguments": ("epoch", "minibatch", "opt", "lr", "batch_size", "weight_decay", "clip_grad"),
    "server_arguments": ("participation_rate_or_num", "server_lr", "commu_times", "test_interval"),
    "cuda_argments": ("devices",),
    "fedopt": ("method", "betas", "momentum", "ams", "mpx"),
    "hyerparams": tuple(HYPER),
}
"""The keys of each section that become something here."""
