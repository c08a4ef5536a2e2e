// Frames, buffers and commands that break the rules of a network interface
// (VirtIO 1.2 §5.1.6), and how such a case is run.

#include "hostile.h"
#include "net.h"

#define HOLE 0xD0000000ul
#define N D_NEXT
#define W D_WRITE
#define SOUND_MS 10000	// the network may have much to throw away first

static u32 lease_ip, lease_mask, lease_gw, lease_dns, lease_hop;

u32 net_outcome(struct net *n, struct vq *q, u32 wait_ms)
{
	u32 id, len;

	for (u64 from = ticks; ticks - from <= wait_ms; wait_irq()) {
		if (reg(n->d, R_STATUS) & S_NEEDS_RESET)
			return O_RESET;
		if (!vq_get(q, &id, &len))
			continue;
		if (q == n->tx && len) {
			fail("hostile", "%u bytes written to a buffer that is to be sent", len);
			return O_BAD;
		}
		return O_USED;
	}
	return O_SILENT;
}

static u32 offer(struct net *n, struct vq *q, u16 head)
{
	vq_put(q, head);
	barrier();
	q->avail->idx = q->avail_idx;
	vq_want_irq(q);
	set(n->d, R_NOTIFY, q->index);
	return net_outcome(n, q, WAIT_MS);
}

static void put(struct vq *q, u32 i, u64 addr, u32 len, u16 flags, u16 next)
{
	q->desc[i] = (struct desc){ addr, len, flags, next };
}

// asking makes slot 0's frame an ARP request, which may be answered.
static struct tx *asking(struct net *n)
{
	struct tx *t = &n->slots[0];
	u8 *a = t->frame + ETH;

	t->h = (struct net_hdr){ 0 };
	memcpy(t->frame, broadcast, 6);
	memcpy(t->frame + 6, n->mac, 6);
	put16(t->frame + 12, 0x0806);
	memcpy(a, "\0\1\10\0\6\4\0\1", 8);
	memcpy(a + 8, n->mac, 6);
	put32(a + 14, lease_ip);
	memset(a + 18, 0, 28);
	put32(a + 24, lease_hop);
	return t;
}

// sent is one frame of a single descriptor.
static u32 sent(struct net *n, u64 addr, u32 len, u16 flags)
{
	asking(n);
	put(n->tx, 0, addr, len, flags, 0);
	return offer(n, n->tx, 0);
}

#define FRAME(n) ((u64)&(n)->slots[0].h)

// lengths tries one after the other, until the device gives up.
static u32 lengths(struct net *n, u32 from, u32 to)
{
	u32 o = O_USED;

	for (u32 len = from; len <= to && o == O_USED; len++)
		o = sent(n, FRAME(n), len, 0);
	return o;
}

static u32 tx_short(struct net *n) { return lengths(n, 1, NET_HDR - 1); }
static u32 tx_runt(struct net *n) { return lengths(n, NET_HDR, NET_HDR + ETH - 1); }
static u32 tx_empty(struct net *n) { return sent(n, FRAME(n), 0, 0); }
static u32 tx_huge(struct net *n) { return sent(n, FRAME(n), 0xfffffff0, 0); }
static u32 tx_outside(struct net *n) { return sent(n, 1ul << 45, 1000, 0); }
static u32 tx_wrap(struct net *n) { return sent(n, ~0ul - 99, 1000, 0); }
static u32 tx_own_registers(struct net *n) { return sent(n, n->d->base, 100, 0); }
static u32 tx_writable(struct net *n) { return sent(n, FRAME(n), 72, W); }

static u32 tx_write_first(struct net *n)
{
	asking(n);
	put(n->tx, 0, (u64)n->txmem, 100, N | W, 1);
	put(n->tx, 1, FRAME(n), 72, 0, 0);
	return offer(n, n->tx, 0);
}

static u32 tx_write_last(struct net *n)
{
	asking(n);
	put(n->tx, 0, FRAME(n), 72, N, 1);
	put(n->tx, 1, (u64)n->txmem, 100, W, 0);
	return offer(n, n->tx, 0);
}

static u32 tx_loop(struct net *n)
{
	asking(n);
	put(n->tx, 0, FRAME(n), 72, N, 1);
	put(n->tx, 1, (u64)n->txmem, 100, N, 0);
	return offer(n, n->tx, 0);
}

// One frame of many full pieces: far longer than any frame.
static u32 tx_overlong(struct net *n)
{
	u32 last = n->tx->size - 1;

	asking(n);
	put(n->tx, 0, FRAME(n), 72, N, 1);
	for (u32 i = 1; i <= last; i++)
		put(n->tx, i, (u64)n->rxmem, 65536, i < last ? N : 0, i + 1);
	return offer(n, n->tx, 0);
}

static u32 tx_over_mtu(struct net *n)
{
	u32 o = O_USED;

	for (u32 len = n->mtu + 1; len < 200000 && o == O_USED; len = len * 5 / 4) {
		asking(n);
		put(n->tx, 0, FRAME(n), NET_HDR + ETH, N, 1);
		put(n->tx, 1, (u64)n->rxmem, len, 0, 0);
		o = offer(n, n->tx, 0);
	}
	return o;
}

// A byte to a descriptor is allowed: framing is the driver's choice (§2.7.4.1),
// and the answer must come.
static u32 tx_pieces(struct net *n)
{
	static struct desc table[72];

	asking(n);
	for (u32 i = 0; i < COUNT(table); i++)
		table[i] = (struct desc){ FRAME(n) + i, 1, i + 1 < COUNT(table) ? N : 0, i + 1 };
	put(n->tx, 0, (u64)table, sizeof table, D_INDIRECT, 0);
	n->arp_want = lease_hop;
	if (offer(n, n->tx, 0) != O_USED)
		return O_SILENT;
	for (u64 from = ticks; n->arp_want && ticks - from < WAIT_MS;)
		net_step(n);
	return n->arp_want ? O_SILENT : O_OK;
}

// headers sends an IPv4 frame of a TCP segment with each of the headers.
static u32 headers(struct net *n, const struct net_hdr *h, u32 count)
{
	struct tx *t;
	u8 *l4;
	u32 o = O_USED;

	n->ip = lease_ip;
	for (u32 i = 0; i < count && o == O_USED; i++) {
		t = asking(n);
		l4 = ip_frame(n, t, n->gw_mac, lease_hop, 6, 60);
		memset(l4, 0x50, 60);
		t->h = h[i];
		put(n->tx, 0, FRAME(n), NET_HDR + ETH + 80, 0, 0);
		o = offer(n, n->tx, 0);
	}
	return o;
}

static const struct net_hdr gso[] = {
	{ 1, 1, 54, 0, 34, 16, 0 }, { 1, 1, 54, 1, 34, 16, 0 }, { 1, 1, 0, 1460, 34, 16, 0 }, { 1, 1, 65535, 65535, 34, 16, 0 }, { 1, 1, 54, 2, 0, 0, 0 },
	{ 0, 1, 54, 1460, 34, 16, 0 }, { 1, 4, 54, 8, 34, 16, 0 }, { 1, 3, 42, 8, 34, 6, 0 }, { 1, 5, 42, 8, 34, 6, 0 }, { 1, 0x7f, 54, 8, 34, 16, 0 },
	{ 1, 0x80, 54, 8, 34, 16, 0 }, { 1, 0x81, 54, 8, 34, 16, 0 }, { 1, 0xff, 54, 8, 34, 16, 0 }, { 1, 1, 1, 1, 1, 1, 1 }, { 1, 1, 94, 4, 34, 16, 65535 },
};
static const struct net_hdr sums[] = {
	{ 1, 0, 0, 0, 0, 0, 0 }, { 1, 0, 0, 0, 0, 65535, 0 }, { 1, 0, 0, 0, 65535, 0, 0 }, { 1, 0, 0, 0, 65535, 65535, 0 }, { 1, 0, 0, 0, 93, 0, 0 },
	{ 1, 0, 0, 0, 94, 0, 0 }, { 1, 0, 0, 0, 34, 58, 0 }, { 1, 0, 0, 0, 34, 59, 0 }, { 1, 0, 0, 0, 34, 60, 0 }, { 1, 0, 0, 0, 0, 92, 0 }, { 1, 0, 0, 0, 0, 93, 0 },
	{ 1, 0, 0, 0, 1, 0, 0 }, { 1, 0, 0, 0, 32768, 32768, 0 }, { 0xff, 0, 0, 0, 34, 16, 0 }, { 2, 0, 0, 0, 34, 16, 0 }, { 4, 0, 0, 0, 0, 0, 0 },
};

static u32 tx_gso(struct net *n) { return headers(n, gso, COUNT(gso)); }
static u32 tx_csum(struct net *n) { return headers(n, sums, COUNT(sums)); }

// Buffers to receive into. Something has to come for them.
static u32 provoke(struct net *n)
{
	u64 us;

	n->ip = lease_ip;
	vq_want_irq(n->rx);
	barrier();
	n->rx->avail->idx = n->rx->avail_idx;
	set(n->d, R_NOTIFY, 0);
	n->nrx = 0;	// nothing that comes is looked at
	for (u32 i = 0; i < 10; i++) {
		arp_ask(n, lease_hop);
		net_flush(n);
		delay_us(500);
	}
	ping(n, lease_hop, 100, 50, &us);
	return reg(n->d, R_STATUS) & S_NEEDS_RESET ? O_RESET : O_LIVES;
}

static u32 rx_of(struct net *n, u64 addr, u32 len, u16 flags)
{
	for (u32 i = 0; i < n->rx->size; i++) {
		put(n->rx, i, addr + (flags & W && len < 4096 ? i * len : 0), len, flags, i);
		vq_put(n->rx, i);
	}
	return provoke(n);
}

static u32 rx_read_only(struct net *n) { return rx_of(n, (u64)n->rxmem, 2048, 0); }
static u32 rx_byte(struct net *n) { return rx_of(n, (u64)n->rxmem, 1, W); }
static u32 rx_header_only(struct net *n) { return rx_of(n, (u64)n->rxmem, NET_HDR, W); }
static u32 rx_short(struct net *n) { return rx_of(n, (u64)n->rxmem, 40, W); }
static u32 rx_zero(struct net *n) { return rx_of(n, (u64)n->rxmem, 0, W); }
static u32 rx_outside(struct net *n) { return rx_of(n, 1ul << 45, 4096, W); }
static u32 rx_hole(struct net *n) { return rx_of(n, HOLE, 4096, W); }
static u32 rx_huge(struct net *n) { return rx_of(n, (u64)n->rxmem, 0xfffffff0, W); }
static u32 rx_loop(struct net *n) { return rx_of(n, (u64)n->rxmem, 4, W | N); }
static u32 rx_ring_target(struct net *n) { return rx_of(n, (u64)n->rx->desc, 4096, W); }

static u32 rx_mixed(struct net *n)
{
	for (u32 i = 0; i + 1 < n->rx->size; i += 2) {
		put(n->rx, i, (u64)n->rxmem, 6, N | (i & 2 ? W : 0), i + 1);
		put(n->rx, i + 1, (u64)n->rxmem + 64, 3000, i & 2 ? 0 : W, 0);
		vq_put(n->rx, i);
	}
	return provoke(n);
}

static u32 rx_avail_far(struct net *n)
{
	put(n->rx, 0, (u64)n->rxmem, 2048, W, 0);
	n->rx->avail_idx = 0x8000;
	return provoke(n);
}

// Nothing is taken in while much is sent: afterwards, without a reset, the
// network goes on.
static u32 rx_none(struct net *n)
{
	u64 us;

	n->ip = lease_ip;
	for (u32 i = 0; i < 2000; i++) {
		struct tx *t = net_slot(n);
		u8 *c;

		if (!t)
			return O_RESET;
		c = ip_frame(n, t, n->gw_mac, lease_hop, 1, 64);
		memset(c, 0, 64);
		put32(c, 0x08000000);
		*(u16 *)(c + 2) = ~fold(sum_of(c, 64, 0));
		net_send(n, t, ETH + 84, NULL, 0);
		if (i % 64 == 63)
			net_flush(n);
	}
	net_drain(n);
	net_fill(n);
	for (u32 i = 0; i < 5; i++)	// what waited may come first
		if (ping(n, lease_hop, 56, WAIT_MS, &us))
			return O_LIVES;
	fail("hostile", "no ping comes back once there are buffers");
	return O_BAD;
}

// Commands.
static u32 command(struct net *n, u32 out, u32 in, u16 first, u16 second)
{
	if (!n->ctl)
		return O_SKIP;
	put(n->ctl, 0, (u64)n->txmem, out, first | (in ? N : 0), 1);
	put(n->ctl, 1, (u64)n->txmem + 65536, in, second, 0);
	return offer(n, n->ctl, 0);
}

static u32 ctrl_short(struct net *n) { memset(n->txmem, 0, 4); return command(n, 1, 1, 0, W); }
static u32 ctrl_no_ack(struct net *n) { memset(n->txmem, 0, 4); return command(n, 3, 0, 0, 0); }
static u32 ctrl_only_ack(struct net *n) { return command(n, 2, 1, W, W); }
static u32 ctrl_backwards(struct net *n) { return command(n, 3, 1, W, 0); }
static u32 ctrl_long(struct net *n) { memset(n->txmem, 0, 65536); return command(n, 65536, 65536, 0, W); }

static u32 ctrl_random(struct net *n)
{
	u64 seed = opt_number("seed", 1);
	u32 o = O_USED;

	for (u32 i = 0; i < 500 && o == O_USED; i++) {
		u64 x = rnd(&seed);

		for (u32 k = 0; k < 64; k += 8)
			*(u64 *)(n->txmem + k) = rnd(&seed);
		n->txmem[0] = x & 7;
		n->txmem[1] = x >> 8 & 7;
		o = command(n, x >> 16 & 63, x >> 24 & 3, 0, W);
	}
	return o;
}

static u32 ctrl_table(struct net *n, const u32 *entries, u32 len)
{
	memset(n->txmem, 0, 65536);
	n->txmem[0] = CTRL_MAC;
	memcpy(n->txmem + 2, &entries[0], 4);
	memcpy(n->txmem + 6, &entries[1], 4);
	return command(n, len, 1, 0, W);
}

static u32 ctrl_mac_table(struct net *n)
{
	static const u32 bad[][2] = { { 0xffffffff, 0 }, { 0, 0xffffffff }, { 1, 0 }, { 0x2aaaaaab, 0 }, { 65536, 0 }, { 0x80000000, 0x80000000 } };
	u32 o = O_USED;

	for (u32 i = 0; i < COUNT(bad) && o == O_USED; i++)
		for (u32 len = 2; len < 14 && o == O_USED; len++)
			o = ctrl_table(n, bad[i], len);
	if (o == O_USED)
		o = ctrl_table(n, (const u32[]){ 9000, 0 }, 2 + 8 + 9000 * 6);
	return o;
}

static u32 ctrl_macs(struct net *n)
{
	static const u8 macs[][6] = { { 0 }, { 255, 255, 255, 255, 255, 255 }, { 1, 0, 0x5e, 0, 0, 1 } };
	u32 o = O_USED;

	for (u32 i = 0; i < COUNT(macs) && o == O_USED; i++) {
		n->txmem[0] = CTRL_MAC;
		n->txmem[1] = 1;
		memcpy(n->txmem + 2, macs[i], 6);
		o = command(n, 8, 1, 0, W);
	}
	return o;
}

// Setup.
static u32 config_writes(struct net *n)
{
	u64 a = n->d->base + R_CONFIG, size = n->d->size - R_CONFIG;

	for (u64 i = 0; i < size; i++) {
		wr8(a + i, 0xff);
		rd8(a + i);
		if (i + 8 <= size) {
			rd64(a + i);
			wr64(a + i, ~0ul);
		}
	}
	for (u32 i = 0; i < 6; i++)
		if (n->d->features & N_MAC && rd8(a + i) != n->mac[i]) {
			fail("hostile", "the MAC address has changed");
			return O_BAD;
		}
	return O_LIVES;
}

// some sets DRIVER_OK with the queues of the mask only, all on the rings of `on`.
static u32 some(struct net *n, u32 mask, struct vq *on)
{
	struct vdev *d = n->d;

	virtio_reset(d);
	if (!virtio_negotiate(d, net_features()))
		return O_BAD;
	for (u32 i = 0; i < 3; i++) {
		struct vq q = on ? *on : d->q[i];

		q.index = i;
		if (mask >> i & 1)
			vq_enable(&q);
	}
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	for (u32 i = 0; i < 1000; i++)
		set(d, R_NOTIFY, i % 4);
	delay_us(2000);
	return O_LIVES;
}

static u32 queues_none(struct net *n) { return some(n, 0, NULL); }
static u32 queue_rx_only(struct net *n) { return some(n, 1, NULL); }
static u32 queue_tx_only(struct net *n) { return some(n, 2, NULL); }
static u32 queue_ctrl_only(struct net *n) { return some(n, 4, NULL); }
static u32 queues_same(struct net *n) { asking(n); put(n->tx, 0, FRAME(n), 72, 0, 0); vq_put(n->tx, 0); n->tx->avail->idx = 1; return some(n, 7, n->tx); }

#define HANDLED (O_USED | O_RESET)
#define ANY (O_LIVES | O_RESET)

const struct hostile_net hostile_frames[] = {
	{ "net-tx-short", tx_short, HANDLED, 0, 0 },
	{ "net-tx-runt", tx_runt, HANDLED, 0, 0 },
	{ "net-tx-empty", tx_empty, HANDLED, 0, 0 },
	{ "net-tx-huge", tx_huge, HANDLED, 0, 0 },
	{ "net-tx-outside", tx_outside, HANDLED, 0, 0 },
	{ "net-tx-wrap", tx_wrap, HANDLED, 0, 0 },
	{ "net-tx-own-registers", tx_own_registers, HANDLED, 0, 0 },
	{ "net-tx-writable", tx_writable, HANDLED, 0, 0 },
	{ "net-tx-write-first", tx_write_first, HANDLED, 0, 0 },
	{ "net-tx-write-last", tx_write_last, HANDLED, 0, 0 },
	{ "net-tx-loop", tx_loop, O_RESET, 0, 0 },
	{ "net-tx-overlong", tx_overlong, HANDLED, 0, 0 },
	{ "net-tx-over-mtu", tx_over_mtu, HANDLED, 0, 0 },
	{ "net-tx-pieces", tx_pieces, O_OK, 0, 0 },
	{ "net-tx-gso", tx_gso, HANDLED, 0, 0 },
	{ "net-tx-gso-unasked", tx_gso, HANDLED, N_CSUM | N_HOST_TSO4, 0 },
	{ "net-tx-csum", tx_csum, HANDLED, 0, 0 },
	{ "net-tx-csum-unasked", tx_csum, HANDLED, N_CSUM | N_HOST_TSO4, 0 },
	{ "net-rx-read-only", rx_read_only, ANY, 0, 1 },
	{ "net-rx-byte", rx_byte, ANY, 0, 1 },
	{ "net-rx-byte-alone", rx_byte, ANY, N_MRG_RXBUF, 1 },
	{ "net-rx-header-only", rx_header_only, ANY, 0, 1 },
	{ "net-rx-short", rx_short, ANY, N_MRG_RXBUF, 1 },
	{ "net-rx-zero", rx_zero, ANY, 0, 1 },
	{ "net-rx-outside", rx_outside, ANY, 0, 1 },
	{ "net-rx-hole", rx_hole, ANY, 0, 1 },
	{ "net-rx-huge", rx_huge, ANY, 0, 1 },
	{ "net-rx-loop", rx_loop, ANY, 0, 1 },
	{ "net-rx-mixed", rx_mixed, ANY, 0, 1 },
	{ "net-rx-avail-far", rx_avail_far, ANY, 0, 1 },
	{ "net-rx-ring-target", rx_ring_target, ANY, 0, 1 },
	{ "net-rx-none", rx_none, O_LIVES, 0, 1 },
	{ "net-ctrl-short", ctrl_short, HANDLED, 0, 0 },
	{ "net-ctrl-no-ack", ctrl_no_ack, HANDLED, 0, 0 },
	{ "net-ctrl-only-ack", ctrl_only_ack, HANDLED, 0, 0 },
	{ "net-ctrl-backwards", ctrl_backwards, HANDLED, 0, 0 },
	{ "net-ctrl-long", ctrl_long, HANDLED, 0, 0 },
	{ "net-ctrl-random", ctrl_random, HANDLED, 0, 0 },
	{ "net-ctrl-mac-table", ctrl_mac_table, HANDLED, 0, 0 },
	{ "net-ctrl-macs", ctrl_macs, HANDLED, 0, 0 },
	{ "net-config-space", config_writes, O_LIVES, 0, 0 },
	{ "net-queues-none", queues_none, O_LIVES, 0, 0 },
	{ "net-queue-rx-only", queue_rx_only, O_LIVES, 0, 0 },
	{ "net-queue-tx-only", queue_tx_only, O_LIVES, 0, 0 },
	{ "net-queue-ctrl-only", queue_ctrl_only, O_LIVES, 0, 0 },
	{ "net-queues-same", queues_same, O_LIVES, 0, 0 },
	{ NULL, NULL, 0, 0, 0 },
};

static void addresses(struct net *n)
{
	n->ip = lease_ip;
	n->mask = lease_mask;
	n->gw = lease_gw;
	n->dns = lease_dns;
	n->hop = lease_hop;
}

// sound: after a reset a ping comes back.
static int sound(struct net *n, struct vdev *d, const char *name)
{
	u64 us, t0 = rdtsc();

	if (!net_init(n, d, net_features(), 0))
		return 0;
	addresses(n);
	while (us_of(rdtsc() - t0) < SOUND_MS * 1000ul)
		if (net_gateway(n, WAIT_MS) && ping(n, n->hop, 56, WAIT_MS, &us))
			return 1;
	fail("hostile", "name=%s no ping comes back after a reset, device status=0x%x rx=%lu tx=%lu", name, reg(d, R_STATUS), n->rx_frames, n->tx_frames);
	return 0;
}

static void run_net(struct net *n, struct vdev *d, const struct hostile_net *h)
{
	u64 config, irq_wait, features = net_features() & ~h->without, t0 = rdtsc();
	u32 o, fails_before = fails, driving;
	u8 mac[6];

	memcpy(mac, n->gw_mac, 6);
	if (h->bare ? !net_start(n, d, features, 0) : !net_init(n, d, features, 0))
		return;
	addresses(n);
	memcpy(n->gw_mac, mac, 6);
	timer_set(1000, 1);
	config = d->config_irqs;
	o = h->run(n);
	driving = reg(d, R_STATUS) & S_DRIVER_OK;
	if (o == O_RESET && driving)
		for (irq_wait = ticks; d->config_irqs == config && ticks - irq_wait < WAIT_MS;)
			wait_irq();
	config = d->config_irqs - config;
	if (!sound(n, d, h->name))
		return;
	if (o & O_SKIP)
		skip("hostile", "name=%s needs another CPU, or a queue that is not there", h->name);
	else if (!(o & h->allowed))
		fail("hostile", "name=%s outcome=%s", h->name, outcome_name(o));
	else if (o == O_RESET && driving && !config)
		fail("hostile", "name=%s NEEDS_RESET without a configuration interrupt", h->name);
	else if (fails == fails_before)
		ok("hostile", "name=%s outcome=%s config_irqs=%lu ms=%lu", h->name, o == O_USED ? "USED" : outcome_name(o), config, us_of(rdtsc() - t0) / 1000);
}

u32 hostile_nets(const char *v, int all)
{
	static const struct hostile_net *const families[] = { hostile_frames, hostile_traffic };
	static struct net n;
	struct vdev *d = net_device(opt_number("net", 0));
	u32 found = 0;

	if (!all && !after(v, "net-"))
		return 0;
	if (!net_one(&n))
		return 1;
	lease_ip = n.ip;
	lease_mask = n.mask;
	lease_gw = n.gw;
	lease_dns = n.dns;
	lease_hop = n.hop;
	for (u32 i = 0; i < COUNT(families); i++)
		for (const struct hostile_net *h = families[i]; h->name; h++)
			if (chosen(v, all, h->name)) {
				found++;
				run_net(&n, d, h);
			}
	timer_set(0, 0);
	virtio_reset(d);
	return found;
}
