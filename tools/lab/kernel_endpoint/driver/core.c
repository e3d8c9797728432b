// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The endpoint core as one module: its three initcalls in the order in which
 * drivers/pci/endpoint/Makefile links them.
 */

#include <linux/module.h>

#include "core.h"

static int __init endpoint_core_init(void)
{
	int ret;

	ret = pci_ep_cfs_init();
	if (ret)
		return ret;
	ret = pci_epc_init();
	if (ret)
		goto err_cfs;
	ret = pci_epf_init();
	if (ret)
		goto err_epc;
	return 0;

err_epc:
	pci_epc_exit();
err_cfs:
	pci_ep_cfs_exit();
	return ret;
}
module_init(endpoint_core_init);

static void __exit endpoint_core_exit(void)
{
	pci_epf_exit();
	pci_epc_exit();
	pci_ep_cfs_exit();
}
module_exit(endpoint_core_exit);

MODULE_DESCRIPTION("PCI endpoint core, built out of tree");
MODULE_LICENSE("Dual MIT/GPL");
