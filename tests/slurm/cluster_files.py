"""The configuration files of the virtual cluster, each as one text. `{dir}` is the cluster's folder, an absolute path.

Slurm 22.05 and later. What is set for a reason other than speed says so; times are short, so that a test waits seconds for what takes
a site minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CPUS_PER_NODE, MIB_PER_NODE = 4, 4000  # bookkeeping only: all nodes share this machine
WATTS_PER_NODE = 200  # what the emulated meter of a node reads
SLURM_CONF = """\
ClusterName=virtual
SlurmctldHost=ctl(127.0.0.1)
SlurmUser=root
SlurmdUser=root
# a requeued job may not start again before its credential has expired, 120 s by default
AuthInfo=socket={dir}/run/munge.sock,cred_expire=5
# slurmd and srun must bind every address: srun is called back on 127.0.0.1, the source of all loopback traffic
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
EnforcePartLimits=ALL
SchedulerParameters=bf_interval=2,sched_interval=5,batch_sched_delay=0,bf_window=2880
KillWait=5
SlurmdTimeout=15
MinJobAge=3600
MessageTimeout=20
TCPTimeout=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a preempted job gets the signal that it asked for with --signal, then GraceTime of its partition
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={dir}/run/munge.sock
AccountingStorageEnforce=associations,limits,qos
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1,energy=1
# below 5 s the readings of a dead node's meter keep the pings waiting that would find it dead
AcctGatherNodeFreq=5
AcctGatherEnergyType=acct_gather_energy/ibmaem
NodeName=DEFAULT CPUs={cpus} RealMemory={mib} State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=1-0 DefaultTime=10 OverSubscribe=NO
PartitionName=debug Default=YES PriorityTier=5 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high PriorityTier=10 PreemptMode=OFF
PartitionName=short PriorityTier=5 PreemptMode=OFF MaxTime=5
"""
SLURMDBD_CONF = """\
AuthInfo=socket={dir}/run/munge.sock
DbdHost=ctl
DbdAddr=127.0.0.1
CommunicationParameters=NoInAddrAny
SlurmUser=root
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounts
"""


def write_files(folder: Path, nodes: Sequence[str]) -> None:
    """Make the cluster's folder: its configuration in `etc/`, and the folders that its daemons write to."""
    for name in ("etc", "run", "log", "state", *(f"spool/{node}" for node in nodes), *(f"meter/{node}/aem.0" for node in nodes)):
        (folder / name).mkdir(parents=True)
    lines = [f"NodeName={node} NodeAddr=127.0.0.{10 + number} Port={6820 + number}" for number, node in enumerate(nodes, 1)]
    text = SLURM_CONF.format(dir=folder, cpus=CPUS_PER_NODE, mib=MIB_PER_NODE, nodes="\n".join(lines))
    (folder / "etc" / "slurm.conf").write_text(text)
    secret = folder / "etc" / "slurmdbd.conf"
    secret.touch(mode=0o600)  # slurmdbd refuses a file that others may read
    secret.write_text(SLURMDBD_CONF.format(dir=folder))
    hosts = ["127.0.0.1 localhost ctl", *(f"127.0.0.{10 + number} {node}" for number, node in enumerate(nodes, 1))]
    (folder / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
    (folder / "etc" / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
