// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Endpoint controller whose hardware is a vfio-user device on the host
 * (tools/lab/kernel_endpoint/hardware.py).
 *
 * BAR0 holds the registers, BAR1 the page with the doorbell register, BAR2 an
 * outbound window that is memory (the host copies root-complex memory in when
 * it is mapped and what changed out when it is unmapped and before every
 * interrupt) and BAR4 one of which every access goes to the root complex.
 */

#include <linux/bitfield.h>
#include <linux/cleanup.h>
#include <linux/dmaengine.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pci-epc.h>
#include <linux/pci-epf.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#define EPC_VENDOR		0x1234
#define EPC_DEVICE		0xe9c0
#define EPC_MAGIC_VALUE		0x32435045	/* "EPC2" */

#define EPC_MAGIC		0x000
#define EPC_COMMAND		0x008
#define EPC_RESULT		0x00c
#define EPC_ARGUMENT		0x010
#define EPC_FLAGS		0x400
#define  EPC_DYNAMIC		BIT(0)
#define  EPC_SUBRANGE		BIT(1)
#define  EPC_MSI		BIT(2)
#define  EPC_MSIX		BIT(3)
#define  EPC_INTX		BIT(4)
#define  EPC_LINKUP		BIT(5)
#define  EPC_ALIGN_ADDR		BIT(6)
#define  EPC_TRAPPED		BIT(7)
#define EPC_ALIGN		0x404
#define EPC_OUTBOUND_ALIGN	0x408
#define EPC_WINDOWS		0x40c
#define EPC_DMA			0x410
#define EPC_DOORBELL		0x414
#define EPC_DOORBELL_BAR	0x418
#define EPC_DOORBELL_OFFSET	0x41c
#define EPC_DOORBELL_PAGE	0x420
#define EPC_DOORBELL_DATA	0x424
#define EPC_EVENTS		0x428
#define  EPC_EVENT_DOWN		BIT(0)
#define  EPC_EVENT_UP		BIT(1)
#define  EPC_EVENT_MASTER	BIT(2)
#define EPC_INBOUND_USED	0x42c
#define EPC_OUTBOUND_USED	0x430
#define EPC_BAR(n)		(0x440 + 8 * (n))
#define  EPC_BAR_TYPE		GENMASK(7, 0)
#define  EPC_BAR_WIDE		BIT(8)
#define EPC_BAR_SIZE(n)		(0x444 + 8 * (n))

#define EPC_REGISTER_BAR	0
#define EPC_DOORBELL_PAGE_BAR	1
#define EPC_MEMORY_BAR		2
#define EPC_TRAPPED_BAR		4

#define EPC_MAX_SUBMAPS		32
#define EPC_CHANNELS		2

enum epc_command {
	EPC_CMD_HEADER = 1,
	EPC_CMD_SET_BAR,
	EPC_CMD_CLEAR_BAR,
	EPC_CMD_MAP,
	EPC_CMD_UNMAP,
	EPC_CMD_SET_MSI,
	EPC_CMD_SET_MSIX,
	EPC_CMD_GET_MSI,
	EPC_CMD_GET_MSIX,
	EPC_CMD_RAISE,
	EPC_CMD_START,
	EPC_CMD_STOP,
	EPC_CMD_PLACE,
	EPC_CMD_COPY,
};

enum epc_vector { EPC_VECTOR_DOORBELL, EPC_VECTOR_EVENT, EPC_VECTORS };

enum epc_dma { EPC_DMA_NONE, EPC_DMA_SLAVE, EPC_DMA_MEMCPY };

enum epc_doorbell {
	EPC_DOORBELL_NONE,
	EPC_DOORBELL_ON_DEMAND,
	EPC_DOORBELL_EXPOSED,
};

struct epc_channel {
	struct dma_chan			chan;
	struct dma_async_tx_descriptor	tx;
	struct dma_slave_config		config;
	struct work_struct		work;
	struct epc_device		*epc;
	dma_addr_t			dst;
	dma_addr_t			src;
	enum dma_transfer_direction	direction;
	size_t				len;
	bool				slave;
	bool				pending;
};

struct epc_device {
	struct pci_dev			*pdev;
	struct pci_epc			*epc;
	void __iomem			*regs;
	phys_addr_t			doorbell;
	phys_addr_t			window;
	size_t				window_size;
	int				window_bar;
	/* one command at a time */
	struct mutex			lock;
	struct pci_epc_ops		ops;
	struct pci_epc_features		features;
	struct pci_epc_bar_rsvd_region	reserved;
	enum epc_doorbell		doorbell_kind;
	u32				outbound_align;
	u32				windows;
	u8				used[PCI_STD_NUM_BARS];
	struct dma_device		dma;
	struct workqueue_struct		*dma_queue;
	enum epc_dma			dma_kind;
	struct epc_channel		channels[EPC_CHANNELS];
};

static int epc_command(struct epc_device *ed, enum epc_command command,
		       const u32 *arguments, unsigned int count)
{
	unsigned int i;

	guard(mutex)(&ed->lock);
	for (i = 0; i < count; i++)
		writel(arguments[i], ed->regs + EPC_ARGUMENT + 4 * i);
	writel(command, ed->regs + EPC_COMMAND);
	return (s32)readl(ed->regs + EPC_RESULT);
}

#define epc_do(ed, command, ...)					\
({									\
	const u32 __arguments[] = { __VA_ARGS__ };			\
									\
	epc_command(ed, command, __arguments, ARRAY_SIZE(__arguments));	\
})

static int epc_write_header(struct pci_epc *epc, u8 fn, u8 vfn,
			    struct pci_epf_header *header)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_HEADER,
		      header->vendorid | header->deviceid << 16,
		      header->revid | header->progif_code << 8 |
		      header->subclass_code << 16 |
		      header->baseclass_code << 24,
		      header->cache_line_size | header->interrupt_pin << 8,
		      header->subsys_vendor_id | header->subsys_id << 16);
}

static int epc_set_bar(struct pci_epc *epc, u8 fn, u8 vfn,
		       struct pci_epf_bar *bar)
{
	struct epc_device *ed = epc_get_drvdata(epc);
	unsigned int count = bar->num_submap ?: 1;
	const struct pci_epc_bar_desc *desc = &ed->features.bar[bar->barno];
	u32 arguments[5 + 4 * EPC_MAX_SUBMAPS];
	unsigned int used = 0;
	size_t total = 0;
	unsigned int i;

	if (desc->type == BAR_DISABLED || desc->type == BAR_RESERVED)
		return -EINVAL;
	if (bar->barno && ed->features.bar[bar->barno - 1].only_64bit)
		return -EINVAL;
	if (count > EPC_MAX_SUBMAPS)
		return -ENOSPC;

	arguments[0] = bar->barno;
	arguments[1] = bar->flags;
	arguments[2] = lower_32_bits(bar->size);
	arguments[3] = upper_32_bits(bar->size);
	arguments[4] = count;
	for (i = 0; i < count; i++) {
		u64 address = bar->phys_addr;
		u64 size = bar->size;

		if (bar->num_submap) {
			address = bar->submap[i].phys_addr;
			size = bar->submap[i].size;
			if (!IS_ALIGNED(address | size, ed->features.align))
				return -EINVAL;
		}
		arguments[5 + 4 * i] = lower_32_bits(address);
		arguments[6 + 4 * i] = upper_32_bits(address);
		arguments[7 + 4 * i] = lower_32_bits(size);
		arguments[8 + 4 * i] = upper_32_bits(size);
		total += size;
	}
	if (total != bar->size)
		return -EINVAL;
	for (i = 0; i < PCI_STD_NUM_BARS; i++)
		used += i == bar->barno ? count : ed->used[i];
	if (used > ed->windows)
		return -ENOSPC;
	ed->used[bar->barno] = count;
	return epc_command(ed, EPC_CMD_SET_BAR, arguments, 5 + 4 * count);
}

static void epc_clear_bar(struct pci_epc *epc, u8 fn, u8 vfn,
			  struct pci_epf_bar *bar)
{
	struct epc_device *ed = epc_get_drvdata(epc);

	ed->used[bar->barno] = 0;
	epc_do(ed, EPC_CMD_CLEAR_BAR, bar->barno);
}

static u64 epc_align_addr(struct pci_epc *epc, u64 address, size_t *size,
			  size_t *offset)
{
	struct epc_device *ed = epc_get_drvdata(epc);

	*offset = address & (ed->outbound_align - 1);
	*size = ALIGN(*offset + *size, ed->outbound_align);
	return address - *offset;
}

static int epc_map_addr(struct pci_epc *epc, u8 fn, u8 vfn, phys_addr_t from,
			u64 to, size_t size)
{
	struct epc_device *ed = epc_get_drvdata(epc);
	u64 offset = from - ed->window;

	/* As hardware does: the low bits of the target are lost. */
	to &= ~((u64)ed->outbound_align - 1);
	return epc_do(ed, EPC_CMD_MAP, ed->window_bar, lower_32_bits(offset),
		      upper_32_bits(offset), lower_32_bits(to),
		      upper_32_bits(to), lower_32_bits(size),
		      upper_32_bits(size));
}

static void epc_unmap_addr(struct pci_epc *epc, u8 fn, u8 vfn,
			   phys_addr_t from)
{
	struct epc_device *ed = epc_get_drvdata(epc);
	u64 offset = from - ed->window;

	epc_do(ed, EPC_CMD_UNMAP, ed->window_bar, lower_32_bits(offset),
	       upper_32_bits(offset));
}

static int epc_set_msi(struct pci_epc *epc, u8 fn, u8 vfn, u8 count)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_SET_MSI, count);
}

static int epc_get_msi(struct pci_epc *epc, u8 fn, u8 vfn)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_GET_MSI, 0);
}

static int epc_set_msix(struct pci_epc *epc, u8 fn, u8 vfn, u16 count,
			enum pci_barno bar, u32 offset)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_SET_MSIX, count, bar,
		      offset);
}

static int epc_get_msix(struct pci_epc *epc, u8 fn, u8 vfn)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_GET_MSIX, 0);
}

static int epc_raise_irq(struct pci_epc *epc, u8 fn, u8 vfn, unsigned int type,
			 u16 number)
{
	u32 kind;

	switch (type) {
	case PCI_IRQ_INTX:
		kind = 0;
		break;
	case PCI_IRQ_MSI:
		kind = 1;
		break;
	case PCI_IRQ_MSIX:
		kind = 2;
		break;
	default:
		return -EINVAL;
	}
	return epc_do(epc_get_drvdata(epc), EPC_CMD_RAISE, kind, number);
}

static int epc_start(struct pci_epc *epc)
{
	return epc_do(epc_get_drvdata(epc), EPC_CMD_START, 0);
}

static void epc_stop(struct pci_epc *epc)
{
	epc_do(epc_get_drvdata(epc), EPC_CMD_STOP, 0);
}

static const struct pci_epc_features *epc_get_features(struct pci_epc *epc,
						       u8 fn, u8 vfn)
{
	struct epc_device *ed = epc_get_drvdata(epc);

	return &ed->features;
}

static int epc_get_aux_resources_count(struct pci_epc *epc, u8 fn, u8 vfn)
{
	struct epc_device *ed = epc_get_drvdata(epc);

	return ed->doorbell_kind == EPC_DOORBELL_NONE ? 0 : 1;
}

static int epc_get_aux_resources(struct pci_epc *epc, u8 fn, u8 vfn,
				 struct pci_epc_aux_resource *resources,
				 int count)
{
	struct epc_device *ed = epc_get_drvdata(epc);
	bool exposed = ed->doorbell_kind == EPC_DOORBELL_EXPOSED;

	if (count < epc_get_aux_resources_count(epc, fn, vfn))
		return -ENOSPC;
	if (ed->doorbell_kind == EPC_DOORBELL_NONE)
		return 0;
	resources[0] = (struct pci_epc_aux_resource) {
		.type = PCI_EPC_AUX_DOORBELL_MMIO,
		.phys_addr = ed->doorbell,
		.size = sizeof(u32),
		.bar = exposed ? readl(ed->regs + EPC_DOORBELL_BAR) : NO_BAR,
		.bar_offset =
			exposed ? readl(ed->regs + EPC_DOORBELL_OFFSET) : 0,
		.u.db_mmio = {
			.irq = pci_irq_vector(ed->pdev, EPC_VECTOR_DOORBELL),
			.data = readl(ed->regs + EPC_DOORBELL_DATA),
		},
	};
	return 0;
}

static const struct pci_epc_ops epc_ops = {
	.write_header = epc_write_header,
	.set_bar = epc_set_bar,
	.clear_bar = epc_clear_bar,
	.align_addr = epc_align_addr,
	.map_addr = epc_map_addr,
	.unmap_addr = epc_unmap_addr,
	.set_msi = epc_set_msi,
	.get_msi = epc_get_msi,
	.set_msix = epc_set_msix,
	.get_msix = epc_get_msix,
	.raise_irq = epc_raise_irq,
	.start = epc_start,
	.stop = epc_stop,
	.get_features = epc_get_features,
	.get_aux_resources_count = epc_get_aux_resources_count,
	.get_aux_resources = epc_get_aux_resources,
	.owner = THIS_MODULE,
};

/* Windows in use: those that BARs have, and those into the host's memory. */

static ssize_t inbound_windows_show(struct device *dev,
				    struct device_attribute *attr, char *buf)
{
	struct epc_device *ed = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", readl(ed->regs + EPC_INBOUND_USED));
}
static DEVICE_ATTR_RO(inbound_windows);

static ssize_t outbound_windows_show(struct device *dev,
				     struct device_attribute *attr, char *buf)
{
	struct epc_device *ed = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", readl(ed->regs + EPC_OUTBOUND_USED));
}
static DEVICE_ATTR_RO(outbound_windows);

static struct attribute *epc_attrs[] = {
	&dev_attr_inbound_windows.attr,
	&dev_attr_outbound_windows.attr,
	NULL
};
ATTRIBUTE_GROUPS(epc);

/* What happened on the root complex's side. */
static irqreturn_t epc_event(int irq, void *data)
{
	struct epc_device *ed = data;
	u32 events = readl(ed->regs + EPC_EVENTS);

	if (!events)
		return IRQ_NONE;
	if (ed->features.linkup_notifier && events & EPC_EVENT_DOWN)
		pci_epc_linkdown(ed->epc);
	if (ed->features.linkup_notifier && events & EPC_EVENT_UP)
		pci_epc_linkup(ed->epc);
	if (events & EPC_EVENT_MASTER)
		pci_epc_bus_master_enable_notify(ed->epc);
	return IRQ_HANDLED;
}

/* DMA channels: one descriptor at a time, copied by a work item. */

static struct epc_channel *to_channel(struct dma_chan *chan)
{
	return container_of(chan, struct epc_channel, chan);
}

/* Copy from or to memory of the endpoint, or the root complex's by a window. */
static int epc_dma_access(struct epc_device *ed, dma_addr_t address,
			  void *buffer, size_t len, bool write)
{
	void __iomem *window;

	if (address < ed->window || address >= ed->window + ed->window_size) {
		if (write)
			memcpy(phys_to_virt(address), buffer, len);
		else
			memcpy(buffer, phys_to_virt(address), len);
		return 0;
	}
	window = ioremap_wc(address, len);
	if (!window)
		return -ENOMEM;
	if (write)
		memcpy_toio(window, buffer, len);
	else
		memcpy_fromio(buffer, window, len);
	iounmap(window);
	return 0;
}

static int epc_copy_memory(struct epc_channel *channel)
{
	struct epc_device *ed = channel->epc;
	size_t len = channel->len;
	void *buffer;
	int ret;

	buffer = kvmalloc(len, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	ret = epc_dma_access(ed, channel->src, buffer, len, false);
	if (!ret)
		ret = epc_dma_access(ed, channel->dst, buffer, len, true);
	kvfree(buffer);
	return ret;
}

static int epc_copy_slave(struct epc_channel *channel)
{
	bool out = channel->direction == DMA_MEM_TO_DEV;
	u64 local = out ? channel->src : channel->dst;
	u64 remote = out ? channel->config.dst_addr : channel->config.src_addr;

	return epc_do(channel->epc, EPC_CMD_COPY, out, lower_32_bits(local),
		      upper_32_bits(local), lower_32_bits(remote),
		      upper_32_bits(remote), channel->len);
}

static void epc_dma_work(struct work_struct *work)
{
	struct epc_channel *channel =
		container_of(work, struct epc_channel, work);
	int ret;

	if (!channel->pending)
		return;
	channel->pending = false;
	ret = channel->slave ? epc_copy_slave(channel) :
			       epc_copy_memory(channel);
	if (ret)
		dev_err(&channel->epc->pdev->dev, "DMA failed: %d\n", ret);
	channel->chan.completed_cookie = channel->tx.cookie;
	if (channel->tx.callback)
		channel->tx.callback(channel->tx.callback_param);
}

static dma_cookie_t epc_tx_submit(struct dma_async_tx_descriptor *tx)
{
	struct epc_channel *channel =
		container_of(tx, struct epc_channel, tx);
	dma_cookie_t cookie = channel->chan.cookie + 1;

	if (cookie < DMA_MIN_COOKIE)
		cookie = DMA_MIN_COOKIE;
	channel->chan.cookie = cookie;
	tx->cookie = cookie;
	channel->pending = true;
	return cookie;
}

static struct dma_async_tx_descriptor *
epc_prepare(struct epc_channel *channel, dma_addr_t dst, dma_addr_t src,
	    size_t len, unsigned long flags)
{
	channel->dst = dst;
	channel->src = src;
	channel->len = len;
	dma_async_tx_descriptor_init(&channel->tx, &channel->chan);
	channel->tx.tx_submit = epc_tx_submit;
	channel->tx.flags = flags;
	channel->tx.callback = NULL;
	channel->tx.callback_result = NULL;
	return &channel->tx;
}

static struct dma_async_tx_descriptor *
epc_prep_dma_memcpy(struct dma_chan *chan, dma_addr_t dst, dma_addr_t src,
		    size_t len, unsigned long flags)
{
	struct epc_channel *channel = to_channel(chan);

	channel->slave = false;
	return epc_prepare(channel, dst, src, len, flags);
}

static struct dma_async_tx_descriptor *
epc_prep_slave_sg(struct dma_chan *chan, struct scatterlist *sg,
		  unsigned int count, enum dma_transfer_direction direction,
		  unsigned long flags, void *context)
{
	struct epc_channel *channel = to_channel(chan);

	if (count != 1)
		return NULL;
	channel->slave = true;
	channel->direction = direction;
	return epc_prepare(channel, sg_dma_address(sg), sg_dma_address(sg),
			   sg_dma_len(sg), flags);
}

static int epc_dma_config(struct dma_chan *chan,
			  struct dma_slave_config *config)
{
	to_channel(chan)->config = *config;
	return 0;
}

static int epc_dma_terminate_all(struct dma_chan *chan)
{
	to_channel(chan)->pending = false;
	return 0;
}

static void epc_dma_synchronize(struct dma_chan *chan)
{
	flush_work(&to_channel(chan)->work);
}

static enum dma_status epc_tx_status(struct dma_chan *chan,
				     dma_cookie_t cookie,
				     struct dma_tx_state *state)
{
	dma_set_tx_state(state, chan->completed_cookie, chan->cookie, 0);
	return dma_async_is_complete(cookie, chan->completed_cookie,
				     chan->cookie);
}

static void epc_issue_pending(struct dma_chan *chan)
{
	struct epc_channel *channel = to_channel(chan);

	queue_work(channel->epc->dma_queue, &channel->work);
}

/* One direction a channel, as an eDMA has them. */
static void epc_dma_caps(struct dma_chan *chan, struct dma_slave_caps *caps)
{
	caps->directions = chan->chan_id ? BIT(DMA_MEM_TO_DEV) :
					   BIT(DMA_DEV_TO_MEM);
}

static void epc_dma_unregister(void *data)
{
	dma_async_device_unregister(data);
}

static int epc_dma_register(struct epc_device *ed)
{
	struct dma_device *dma = &ed->dma;
	unsigned int i;
	int ret;

	if (ed->dma_kind == EPC_DMA_NONE)
		return 0;
	/* pci-epf-test waits for it on a queue of this kind, so it may not be
	 * one that waits for memory.
	 */
	ed->dma_queue = devm_alloc_workqueue(&ed->pdev->dev, "rcdrv-epc-dma",
					     WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	if (!ed->dma_queue)
		return -ENOMEM;
	INIT_LIST_HEAD(&dma->channels);
	dma->dev = &ed->pdev->dev;
	dma->device_tx_status = epc_tx_status;
	dma->device_issue_pending = epc_issue_pending;
	dma->device_terminate_all = epc_dma_terminate_all;
	dma->device_synchronize = epc_dma_synchronize;
	if (ed->dma_kind == EPC_DMA_SLAVE) {
		dma_cap_set(DMA_SLAVE, dma->cap_mask);
		dma_cap_set(DMA_PRIVATE, dma->cap_mask);
		dma->device_config = epc_dma_config;
		dma->device_prep_slave_sg = epc_prep_slave_sg;
		dma->device_caps = epc_dma_caps;
		dma->directions = BIT(DMA_DEV_TO_MEM) | BIT(DMA_MEM_TO_DEV);
		dma->src_addr_widths = BIT(DMA_SLAVE_BUSWIDTH_4_BYTES);
		dma->dst_addr_widths = BIT(DMA_SLAVE_BUSWIDTH_4_BYTES);
		dma->residue_granularity = DMA_RESIDUE_GRANULARITY_DESCRIPTOR;
	} else {
		dma_cap_set(DMA_MEMCPY, dma->cap_mask);
		dma->device_prep_dma_memcpy = epc_prep_dma_memcpy;
	}
	for (i = 0; i < EPC_CHANNELS; i++) {
		struct epc_channel *channel = &ed->channels[i];

		channel->epc = ed;
		channel->chan.device = dma;
		channel->chan.cookie = DMA_MIN_COOKIE;
		channel->chan.completed_cookie = DMA_MIN_COOKIE;
		INIT_WORK(&channel->work, epc_dma_work);
		list_add_tail(&channel->chan.device_node, &dma->channels);
	}
	ret = dma_async_device_register(dma);
	if (ret)
		return ret;
	return devm_add_action_or_reset(&ed->pdev->dev, epc_dma_unregister,
					dma);
}

/* The description of the controller, as the hardware has it. */
static void epc_read_features(struct epc_device *ed)
{
	struct pci_epc_features *features = &ed->features;
	u32 flags = readl(ed->regs + EPC_FLAGS);
	unsigned int i;

	features->dynamic_inbound_mapping = !!(flags & EPC_DYNAMIC);
	features->subrange_mapping = !!(flags & EPC_SUBRANGE);
	features->msi_capable = !!(flags & EPC_MSI);
	features->msix_capable = !!(flags & EPC_MSIX);
	features->intx_capable = !!(flags & EPC_INTX);
	features->linkup_notifier = !!(flags & EPC_LINKUP);
	features->align = readl(ed->regs + EPC_ALIGN);
	ed->window_bar = flags & EPC_TRAPPED ? EPC_TRAPPED_BAR :
					       EPC_MEMORY_BAR;
	ed->outbound_align = readl(ed->regs + EPC_OUTBOUND_ALIGN);
	ed->windows = readl(ed->regs + EPC_WINDOWS);
	ed->dma_kind = readl(ed->regs + EPC_DMA);
	ed->doorbell_kind = readl(ed->regs + EPC_DOORBELL);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		u32 bar = readl(ed->regs + EPC_BAR(i));

		features->bar[i].type = FIELD_GET(EPC_BAR_TYPE, bar);
		features->bar[i].only_64bit = !!(bar & EPC_BAR_WIDE);
		if (features->bar[i].type == BAR_FIXED)
			features->bar[i].fixed_size =
				readl(ed->regs + EPC_BAR_SIZE(i));
	}
	if (ed->doorbell_kind == EPC_DOORBELL_EXPOSED) {
		i = readl(ed->regs + EPC_DOORBELL_BAR);
		ed->reserved.type = PCI_EPC_BAR_RSVD_DMA_CTRL_MMIO;
		ed->reserved.size = readl(ed->regs + EPC_BAR_SIZE(i));
		features->bar[i].nr_rsvd_regions = 1;
		features->bar[i].rsvd_regions = &ed->reserved;
	}
	ed->ops = epc_ops;
	if (!(flags & EPC_ALIGN_ADDR))
		ed->ops.align_addr = NULL;
}

static int epc_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct epc_device *ed;
	int ret;

	ed = devm_kzalloc(dev, sizeof(*ed), GFP_KERNEL);
	if (!ed)
		return -ENOMEM;
	ed->pdev = pdev;
	pci_set_drvdata(pdev, ed);
	ret = devm_mutex_init(dev, &ed->lock);
	if (ret)
		return ret;
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	pci_set_master(pdev);
	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	ed->regs = pcim_iomap(pdev, EPC_REGISTER_BAR, 0);
	if (!ed->regs)
		return -ENOMEM;
	if (readl(ed->regs + EPC_MAGIC) != EPC_MAGIC_VALUE)
		return dev_err_probe(dev, -ENODEV, "unknown hardware\n");
	epc_read_features(ed);
	ed->doorbell = pci_resource_start(pdev, EPC_DOORBELL_PAGE_BAR) +
		       readl(ed->regs + EPC_DOORBELL_PAGE);
	ed->window = pci_resource_start(pdev, ed->window_bar);
	ed->window_size = pci_resource_len(pdev, ed->window_bar);

	ret = pci_alloc_irq_vectors(pdev, EPC_VECTORS, EPC_VECTORS,
				    PCI_IRQ_MSIX);
	if (ret < 0)
		return ret;
	epc_do(ed, EPC_CMD_PLACE, lower_32_bits(ed->doorbell),
	       upper_32_bits(ed->doorbell));

	ed->epc = devm_pci_epc_create(dev, &ed->ops);
	if (IS_ERR(ed->epc))
		return PTR_ERR(ed->epc);
	ed->epc->max_functions = 1;
	epc_set_drvdata(ed->epc, ed);
	ret = pci_epc_mem_init(ed->epc, ed->window, ed->window_size,
			       ed->outbound_align);
	if (ret)
		return ret;
	ret = epc_dma_register(ed);
	if (ret)
		goto err_mem;
	ret = request_threaded_irq(pci_irq_vector(pdev, EPC_VECTOR_EVENT),
				   NULL, epc_event, IRQF_ONESHOT, "rcdrv-epc",
				   ed);
	if (ret)
		goto err_mem;
	pci_epc_init_notify(ed->epc);
	return 0;

err_mem:
	pci_epc_mem_exit(ed->epc);
	return ret;
}

static void epc_remove(struct pci_dev *pdev)
{
	struct epc_device *ed = pci_get_drvdata(pdev);

	free_irq(pci_irq_vector(pdev, EPC_VECTOR_EVENT), ed);
	pci_epc_deinit_notify(ed->epc);
	pci_epc_mem_exit(ed->epc);
}

static const struct pci_device_id epc_ids[] = {
	{ PCI_DEVICE(EPC_VENDOR, EPC_DEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, epc_ids);

static struct pci_driver epc_driver = {
	.name = "rcdrv-epc",
	.id_table = epc_ids,
	.probe = epc_probe,
	.remove = epc_remove,
	.dev_groups = epc_groups,
};
module_pci_driver(epc_driver);

MODULE_DESCRIPTION("PCI endpoint controller on a vfio-user device");
MODULE_LICENSE("Dual MIT/GPL");
