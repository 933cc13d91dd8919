"""Every method of the simulated API, in one table."""

from __future__ import annotations

from agentlab.testing.proxmox import (
    access_methods,
    cluster_methods,
    firewall_methods,
    firewall_set_methods,
    node_methods,
    pool_methods,
    rights_methods,
    sdn_methods,
    storage_methods,
    upload_methods,
    vm_agent_methods,
    vm_clone_methods,
    vm_config_methods,
    vm_create_methods,
    vm_drive_methods,
    vm_power_methods,
    vm_snapshot_methods,
)
from agentlab.testing.proxmox.method import Method

METHODS: tuple[Method, ...] = (
    *cluster_methods.METHODS,
    *node_methods.METHODS,
    *storage_methods.METHODS,
    *upload_methods.METHODS,
    *vm_create_methods.METHODS,
    *vm_drive_methods.METHODS,
    *vm_clone_methods.METHODS,
    *vm_config_methods.METHODS,
    *vm_power_methods.METHODS,
    *vm_snapshot_methods.METHODS,
    *vm_agent_methods.METHODS,
    *firewall_methods.METHODS,
    *firewall_set_methods.METHODS,
    *pool_methods.METHODS,
    *rights_methods.METHODS,
    *sdn_methods.METHODS,
    *access_methods.METHODS,
)
