// Frames to send that break the rules of a network interface (VirtIO 1.2
// §5.1.6.1, §5.1.6.2).

#include "hostile.h"
#include "net.h"

#define N D_NEXT
#define W D_WRITE

// sent is one frame of a single descriptor.
static u32 sent(struct net *n, u64 addr, u32 len, u16 flags)
{
	asking(n);
	net_put(n->tx, 0, addr, len, flags, 0);
	return net_offer(n, n->tx, 0);
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
	net_put(n->tx, 0, (u64)n->txmem, 100, N | W, 1);
	net_put(n->tx, 1, FRAME(n), 72, 0, 0);
	return net_offer(n, n->tx, 0);
}

static u32 tx_write_last(struct net *n)
{
	asking(n);
	net_put(n->tx, 0, FRAME(n), 72, N, 1);
	net_put(n->tx, 1, (u64)n->txmem, 100, W, 0);
	return net_offer(n, n->tx, 0);
}

static u32 tx_loop(struct net *n)
{
	asking(n);
	net_put(n->tx, 0, FRAME(n), 72, N, 1);
	net_put(n->tx, 1, (u64)n->txmem, 100, N, 0);
	return net_offer(n, n->tx, 0);
}

// One frame of many full pieces: far longer than any frame.
static u32 tx_overlong(struct net *n)
{
	u32 last = n->tx->size - 1;

	asking(n);
	net_put(n->tx, 0, FRAME(n), 72, N, 1);
	for (u32 i = 1; i <= last; i++)
		net_put(n->tx, i, (u64)n->rxmem, 65536, i < last ? N : 0, i + 1);
	return net_offer(n, n->tx, 0);
}

static u32 tx_over_mtu(struct net *n)
{
	u32 o = O_USED;

	for (u32 len = n->mtu + 1; len < 200000 && o == O_USED; len = len * 5 / 4) {
		asking(n);
		net_put(n->tx, 0, FRAME(n), NET_HDR + ETH, N, 1);
		net_put(n->tx, 1, (u64)n->rxmem, len, 0, 0);
		o = net_offer(n, n->tx, 0);
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
	net_put(n->tx, 0, (u64)table, sizeof table, D_INDIRECT, 0);
	n->arp_want = lease_hop;
	if (net_offer(n, n->tx, 0) != O_USED)
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
		net_put(n->tx, 0, FRAME(n), NET_HDR + ETH + 80, 0, 0);
		o = net_offer(n, n->tx, 0);
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
	{ NULL, NULL, 0, 0, 0 },
};
