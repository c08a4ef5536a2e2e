// Buffers and commands that break the rules of a network interface (VirtIO 1.2
// §5.1.6), and how the cases of an interface are run.

#include "hostile.h"
#include "net.h"

#define HOLE 0xD0000000ul
#define N D_NEXT
#define W D_WRITE
#define SOUND_MS 10000	// the network may have much to throw away first

u32 lease_ip, lease_hop;
static u32 lease_mask, lease_gw, lease_dns;

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

u32 net_offer(struct net *n, struct vq *q, u16 head)
{
	vq_put(q, head);
	barrier();
	q->avail->idx = q->avail_idx;
	vq_want_irq(q);
	set(n->d, R_NOTIFY, q->index);
	return net_outcome(n, q, WAIT_MS);
}

void net_put(struct vq *q, u32 i, u64 addr, u32 len, u16 flags, u16 next)
{
	q->desc[i] = (struct desc){ addr, len, flags, next };
}

// asking makes slot 0's frame an ARP request, which may be answered.
struct tx *asking(struct net *n)
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
		net_put(n->rx, i, addr + (flags & W && len < 4096 ? i * len : 0), len, flags, i);
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
		net_put(n->rx, i, (u64)n->rxmem, 6, N | (i & 2 ? W : 0), i + 1);
		net_put(n->rx, i + 1, (u64)n->rxmem + 64, 3000, i & 2 ? 0 : W, 0);
		vq_put(n->rx, i);
	}
	return provoke(n);
}

static u32 rx_avail_far(struct net *n)
{
	net_put(n->rx, 0, (u64)n->rxmem, 2048, W, 0);
	n->rx->avail_idx = 0x8000;
	return provoke(n);
}

// Nothing is taken in while much is sent: afterwards, without a reset, the
// network goes on.
static u32 rx_none(struct net *n)
{
	u64 us, t0 = rdtsc();

	n->ip = lease_ip;
	for (u32 i = 0; i < 2000 && us_of(rdtsc() - t0) < WAIT_MS * 1000ul; i++) {
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
	net_put(n->ctl, 0, (u64)n->txmem, out, first | (in ? N : 0), 1);
	net_put(n->ctl, 1, (u64)n->txmem + 65536, in, second, 0);
	return net_offer(n, n->ctl, 0);
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
static u32 queues_same(struct net *n) { asking(n); net_put(n->tx, 0, FRAME(n), 72, 0, 0); vq_put(n->tx, 0); n->tx->avail->idx = 1; return some(n, 7, n->tx); }

const struct hostile_net hostile_buffers[] = {
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
	static const struct hostile_net *const families[] = { hostile_frames, hostile_buffers, hostile_traffic };
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
