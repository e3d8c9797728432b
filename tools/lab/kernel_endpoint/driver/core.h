/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
#ifndef RCDRV_ENDPOINT_CORE_H
#define RCDRV_ENDPOINT_CORE_H

/* The initcalls of pci-ep-cfs.c, pci-epc-core.c and pci-epf-core.c. */
int pci_ep_cfs_init(void);
void pci_ep_cfs_exit(void);
int pci_epc_init(void);
void pci_epc_exit(void);
int pci_epf_init(void);
void pci_epf_exit(void);

#endif
