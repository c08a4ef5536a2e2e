// The driver: a queue of buffers to receive into, a queue of frames to send, a
// queue of commands. Buffers lie in free RAM and are never cleared.

#include "net.h"

#define LOST_US 300000		// used buffers that no interrupt tells of for so long
#define GIVE_UP_US 5000000	// frames that nobody takes

static u64 rxpool, txpool;

struct vdev *net_device(u32 n)
{
	virtio_find();
	for (u32 i = 0; i < nvdevs; i++)
		if (vdevs[i].id == 1 && n-- == 0)
			return &vdevs[i];
	return NULL;
}

// GUEST_TSO6 is of no use without IPv6, but there are networks that give large
// segments only to those who take them of both kinds.
u64 net_features(void)
{
	static const struct { const char *name; u64 bits; } off[] = {
		{ "csum", N_CSUM | N_GUEST_CSUM | N_HOST_TSO4 | N_GUEST_TSO4 | N_GUEST_TSO6 }, { "tso", N_HOST_TSO4 | N_GUEST_TSO4 | N_GUEST_TSO6 }, { "mrg", N_MRG_RXBUF },
		{ "event", F_EVENT_IDX }, { "indirect", F_INDIRECT }, { "ctrl", N_CTRL_VQ | N_CTRL_RX | N_CTRL_MAC_ADDR }, { "mtu", N_MTU },
	};
	u64 f = F_INDIRECT | F_EVENT_IDX | N_MAC | N_STATUS | N_MTU | N_MRG_RXBUF | N_CTRL_VQ | N_CTRL_RX | N_CTRL_MAC_ADDR |
		N_CSUM | N_GUEST_CSUM | N_HOST_TSO4 | N_GUEST_TSO4 | N_GUEST_TSO6;

	for (u32 i = 0; i < COUNT(off); i++)
		if (!opt_number(off[i].name, 1))
			f &= ~off[i].bits;
	return f;
}

// needs drops bits whose condition was not offered (§5.1.3.1).
static u64 needs(u64 f)
{
	if (!(f & N_CSUM))
		f &= ~(u64)N_HOST_TSO4;
	if (!(f & N_GUEST_CSUM))
		f &= ~(u64)(N_GUEST_TSO4 | N_GUEST_TSO6);
	if (!(f & N_CTRL_VQ))
		f &= ~(u64)(N_CTRL_RX | N_CTRL_MAC_ADDR);
	return f;
}

static int queue(struct net *n, struct vq *q, u16 index, void *mem)
{
	struct vdev *d = n->d;
	u32 max;

	set(d, R_QUEUE_SEL, index);
	max = reg(d, R_QUEUE_MAX);
	if (max == 0 || max > 32768 || max & (max - 1)) {
		fail("net", "dev=%u queue %u of %u", d->n, index, max);
		return 0;
	}
	q->max = max;
	vq_layout(q, d, index, max < NET_RING ? max : NET_RING, mem);
	if (!vq_enable(q)) {
		fail("net", "dev=%u queue %u not ready, status=0x%x", d->n, index, reg(d, R_STATUS));
		return 0;
	}
	return 1;
}

static u32 least(u64 a, u64 b) { return a < b ? a : b; }

int net_start(struct net *n, struct vdev *d, u64 want, u32 rxbuf)
{
	static u8 *rings, *rxmem, *txmem, *whole;
	static struct tx *slots;
	u32 frame;
	u16 step;

	if (!rings) {
		u64 room = heap_end - heap_at;

		rings = heap(3 * ((vq_bytes(NET_RING) + 4095) & ~4095ul));
		slots = heap(NET_RING * sizeof(struct tx));
		whole = heap_raw(128 << 10);
		rxpool = least(16 << 20, room / 3);
		txpool = least(8 << 20, room / 4);
		rxmem = heap_raw(rxpool);
		txmem = heap_raw(txpool);
	}
	*n = (struct net){ .d = d, .rx = &d->q[0], .tx = &d->q[1], .ctl = &d->q[2], .rxmem = rxmem, .txmem = txmem, .slots = slots, .whole = whole };
	virtio_reset(d);
	want = needs(virtio_offered(d) & want);
	virtio_reset(d);
	virtio_interrupts(d);
	if (!virtio_negotiate(d, want)) {
		fail("net", "dev=%u features 0x%lx of 0x%lx refused, status=0x%x", d->n, d->features, d->offered, reg(d, R_STATUS));
		return 0;
	}
	if (!(d->features & N_CTRL_VQ))
		n->ctl = NULL;
	memcpy(n->mac, "\x52\x54\x00\x12\x34\x56", 6);
	if (d->features & N_MAC)
		for (u32 i = 0; i < 6; i++)
			n->mac[i] = rd8(d->base + R_CONFIG + C_MAC + i);
	n->mtu = d->features & N_MTU ? rd16(d->base + R_CONFIG + C_MTU) : 1500;
	if (n->mtu < 68) {	// RFC 791
		fail("net", "dev=%u mtu=%u", d->n, n->mtu);
		return 0;
	}
	n->mtu = least(n->mtu, opt_number("mtu", 65535) ? opt_number("mtu", 65535) : 1500);
	frame = NET_HDR + (d->features & (N_GUEST_TSO4 | N_GUEST_TSO6) ? FRAME_MAX : ETH + n->mtu);
	if (frame < NET_HDR + ETH + 1500)
		frame = NET_HDR + ETH + 1500;	// §5.1.6.3.1
	frame = (frame + 63) & ~63;
	n->rxbuf = rxbuf && d->features & N_MRG_RXBUF ? rxbuf : frame;
	n->stride = (ETH + n->mtu + 63) & ~63;
	for (u32 i = 0; i < (n->ctl ? 3 : 2); i++)
		if (!queue(n, &d->q[i], i, rings + i * ((vq_bytes(NET_RING) + 4095) & ~4095ul)))
			return 0;
	n->nrx = least(n->rx->size, rxpool / n->rxbuf);
	step = d->features & F_INDIRECT ? 1 : 4;
	n->ntx = least(n->tx->size / step, txpool / n->stride);
	if (n->nrx < 4 || n->ntx < 4) {
		fail("net", "dev=%u no memory for buffers: rx=%u tx=%u", d->n, n->nrx, n->ntx);
		return 0;
	}
	for (u32 i = 0; i < n->ntx; i++)
		n->free[n->nfree++] = n->ntx - 1 - i;
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	if (reg(d, R_STATUS) & S_NEEDS_RESET) {
		fail("net", "dev=%u wants a reset at DRIVER_OK", d->n);
		return 0;
	}
	vq_no_irq(n->tx);
	timer_set(TICK, 1);
	return 1;
}

int net_init(struct net *n, struct vdev *d, u64 want, u32 rxbuf)
{
	if (!net_start(n, d, want, rxbuf))
		return 0;
	net_fill(n);
	return 1;
}

void net_fill(struct net *n)
{
	for (u32 i = 0; i < n->nrx; i++) {
		n->rx->desc[i] = (struct desc){ (u64)n->rxmem + (u64)i * n->rxbuf, n->rxbuf, D_WRITE, 0 };
		vq_put(n->rx, i);
	}
	vq_want_irq(n->rx);
	vq_publish(n->rx);
}

u8 net_status(struct net *n)
{
	return n->d->features & N_STATUS ? rd16(n->d->base + R_CONFIG + C_STATUS) & 1 : 1;
}

// one takes a frame of `bufs` buffers from the used ring, the first of which is
// id with len bytes.
static void one(struct net *n, u32 id, u32 len)
{
	u8 *at = n->rxmem + (u64)id * n->rxbuf;
	struct net_hdr h;
	u32 bufs;

	if (id >= n->nrx || len > n->rxbuf || len < NET_HDR) {
		n->bad++;
		return;
	}
	h = *(struct net_hdr *)at;
	bufs = n->d->features & N_MRG_RXBUF ? h.num_buffers : 1;
	if (bufs == 1) {
		n->rx_bytes += len - NET_HDR;
		net_input(n, &h, at + NET_HDR, len - NET_HDR);
		vq_put(n->rx, id);
		return;
	}
	// In several: put together, the buffers go back at once.
	u32 have = len - NET_HDR;
	memcpy(n->whole, at + NET_HDR, have);
	vq_put(n->rx, id);
	n->merged++;
	for (u32 i = 1; i < bufs; i++) {
		if (!vq_get(n->rx, &id, &len) || id >= n->nrx || len > n->rxbuf || !len || have + len > FRAME_MAX) {
			n->bad++;	// buffers of a frame are used together (§5.1.6.4)
			return;
		}
		memcpy(n->whole + have, n->rxmem + (u64)id * n->rxbuf, len);
		have += len;
		vq_put(n->rx, id);
	}
	if (!bufs) {
		n->bad++;
		return;
	}
	n->rx_bytes += have;
	net_input(n, &h, n->whole, have);
}

void tcp_batch(struct net *n);

u32 net_poll(struct net *n)
{
	u64 told = n->rx_bytes;
	u32 got = 0, id, len;

	while (got < 1024 && vq_get(n->rx, &id, &len)) {
		if (!got)
			vq_no_irq(n->rx);
		one(n, id, len);
		n->rx_frames++;
		if (++got % BATCH == 0 || n->rx_bytes - told > BATCH_BYTES) {
			told = n->rx_bytes;
			vq_publish(n->rx);
			tcp_batch(n);
		}
	}
	if (got && (u16)n->rx->avail->idx != n->rx->avail_idx)
		vq_publish(n->rx);
	tcp_batch(n);
	return got;
}

static void check_broken(struct net *n)
{
	if (reg(n->d, R_STATUS) & S_NEEDS_RESET)
		n->broken = 1;
}

static int waits(struct vq *q) { return q->used->idx != q->last_used; }

// net_step looks again only after an interrupt of the device or a tick without
// anything to see; what lies there for long without an interrupt was lost.
u32 net_step(struct net *n)
{
	struct vdev *d = n->d;
	u64 irqs, config, from, t0;
	u32 got = net_poll(n);

	if (got)
		return got;
	if (n->spin) {
		for (t0 = rdtsc(); !waits(n->rx) && rdtsc() - t0 < TICK * tsc_khz / 1000;)
			pause();
		return net_poll(n);
	}
	vq_want_irq(n->rx);
	if (waits(n->rx) || (n->starved && net_room(n)))
		return net_poll(n);
	irqs = d->irqs;
	config = d->config_irqs;
	from = ticks;
	t0 = rdtsc();
	while (d->irqs == irqs) {
		if (d->config_irqs != config) {
			check_broken(n);
			return 0;
		}
		if (ticks != from) {
			if (!waits(n->rx))
				return net_poll(n);
			if (us_of(rdtsc() - t0) > LOST_US) {
				check_broken(n);
				n->lost++;
				return net_poll(n);
			}
		}
		wait_irq();
	}
	return net_poll(n);
}

static void reclaim(struct net *n)
{
	u32 id, len;

	while (vq_get(n->tx, &id, &len)) {
		id = n->d->features & F_INDIRECT ? id : id / 4;
		if (id >= n->ntx || n->nfree >= n->ntx) {
			n->bad++;
			continue;
		}
		n->free[n->nfree++] = id;
	}
}

int net_room(struct net *n)
{
	if (n->nfree <= n->ntx / 2) {
		reclaim(n);
		if (!n->nfree) {	// then an interrupt is wanted for the next
			n->starved = 1;
			vq_want_irq_at(n->tx, n->ntx / 4);
			reclaim(n);
		}
	}
	if (n->nfree && n->starved) {
		n->starved = 0;
		vq_no_irq(n->tx);
	}
	return n->nfree;
}

// wait_tx waits for so many free slots, with one interrupt for all of them.
static void wait_tx(struct net *n, u32 want)
{
	u64 t0 = rdtsc(), config = n->d->config_irqs;

	net_flush(n);
	while (reclaim(n), n->nfree < want && !n->broken) {
		vq_want_irq_at(n->tx, want - n->nfree);
		reclaim(n);
		if (n->nfree >= want)
			break;
		wait_irq();
		if (us_of(rdtsc() - t0) > GIVE_UP_US) {
			fail("net", "dev=%u %u of %u frames are not taken", n->d->n, n->ntx - n->nfree, n->ntx);
			n->broken = 1;
		} else if (n->d->config_irqs != config)
			check_broken(n);
	}
	vq_no_irq(n->tx);
}

void net_drain(struct net *n) { wait_tx(n, n->ntx); }

struct tx *net_slot(struct net *n)
{
	struct tx *t;

	if (!net_room(n)) {
		wait_tx(n, n->ntx / 4);	// for one the price is the same
		n->starved = 0;
	}
	if (n->broken || !n->nfree)
		return NULL;
	t = &n->slots[n->free[n->nfree - 1]];
	t->h = (struct net_hdr){ 0 };
	return t;
}

void net_send(struct net *n, struct tx *t, u32 len, const void *more, u32 more_len)
{
	int indirect = (n->d->features & F_INDIRECT) != 0;
	u32 s = n->free[--n->nfree], base = indirect ? 0 : 4 * s, k = 0;
	struct desc *table = indirect ? t->table : (struct desc *)&n->tx->desc[base];

	if (n->split) {
		table[k++] = (struct desc){ (u64)&t->h, NET_HDR, D_NEXT, base + 1 };
		table[k++] = (struct desc){ (u64)t->frame, len, D_NEXT, base + 2 };
	} else
		table[k++] = (struct desc){ (u64)&t->h, NET_HDR + len, D_NEXT, base + 1 };
	if (more_len) {
		table[k] = (struct desc){ (u64)more, more_len, 0, 0 };
		k++;
	}
	table[k - 1].flags = 0;
	if (indirect) {
		n->tx->desc[s] = (struct desc){ (u64)table, 16 * k, D_INDIRECT, 0 };
		vq_put(n->tx, s);
	} else
		vq_put(n->tx, base);
	n->tx_frames++;
	n->tx_bytes += len + more_len;
}

void net_send_copy(struct net *n, struct tx *t, u32 len, const void *more, u32 more_len)
{
	u8 *to = n->txmem + (u64)n->free[n->nfree - 1] * n->stride;

	memcpy(to, more, more_len);
	net_send(n, t, len, to, more_len);
}

void net_flush(struct net *n)
{
	if ((u16)n->tx->avail->idx != n->tx->avail_idx)
		vq_publish(n->tx);
}

u8 net_command(struct net *n, u8 class, u8 cmd, const void *data, u32 len)
{
	static struct { u8 class, cmd, data[1022]; volatile u8 ack; } c;
	struct vq *q = n->ctl;
	u32 id, used, last = 1;
	u64 t0 = rdtsc();

	c.class = class;
	c.cmd = cmd;
	c.ack = CTRL_UNTOUCHED;
	memcpy(c.data, data, len);
	q->desc[0] = (struct desc){ (u64)&c, 2, D_NEXT, 1 };
	if (len) {
		q->desc[1] = (struct desc){ (u64)c.data, len, D_NEXT, 2 };
		last = 2;
	}
	q->desc[last] = (struct desc){ (u64)&c.ack, 1, D_WRITE, 0 };
	vq_put(q, 0);
	vq_want_irq(q);
	vq_publish(q);
	while (!vq_get(q, &id, &used)) {
		vq_want_irq(q);
		if (waits(q))
			continue;
		wait_irq();
		if (us_of(rdtsc() - t0) > GIVE_UP_US || reg(n->d, R_STATUS) & S_NEEDS_RESET)
			return CTRL_UNTOUCHED;
	}
	return c.ack;
}
