// What check does with each network interface, how the other modes come to an
// address, and netecho.

#include "tcp.h"

#define ANSWER_MS 3000
#define DHCP_MS 1500

int quit;

// Without DHCP these are the addresses of the network (docs of the monitor).
#define OWN IP4(10, 0, 2, 15)
#define GATEWAY IP4(10, 0, 2, 2)
#define RESOLVER IP4(10, 0, 2, 3)

// absent reports an answer that did not come.
static void absent(const char *what, struct net *n)
{
	if (lax)
		skip(what, "dev=%u no answer", n->d->n);
	else
		fail(what, "dev=%u no answer, status=0x%x rx=%lu tx=%lu bad=%u badsum=%u lost=%u", n->d->n, reg(n->d, R_STATUS), n->rx_frames,
		     n->tx_frames, n->bad, n->badsum, n->lost);
}

// DHCP (RFC 2131, options: RFC 2132).
static struct { u32 xid, ip, server, mask, gw, dns; u16 mtu; u8 type; } lease;

static void dhcp_input(struct net *n, u32 src, u16 sport, u16 dport, u8 *p, u32 len)
{
	(void)src;
	if (sport != 67 || dport != 68 || len < 240 || p[0] != 2 || get32(p + 4) != lease.xid || memcmp(p + 28, n->mac, 6) ||
	    get32(p + 236) != 0x63825363)
		return;
	lease.ip = get32(p + 16);
	for (u32 i = 240; i + 1 < len && p[i] != 255;) {
		u8 *v = p + i + 2, size = p[i + 1];

		if (!p[i]) {
			i++;
			continue;
		}
		i += 2 + size;
		if (i > len)
			break;
		switch (v[-2]) {
		case 53: lease.type = size ? v[0] : 0; break;
		case 54: lease.server = size >= 4 ? get32(v) : 0; break;
		case 1: lease.mask = size >= 4 ? get32(v) : 0; break;
		case 3: lease.gw = size >= 4 ? get32(v) : 0; break;
		case 6: lease.dns = size >= 4 ? get32(v) : 0; break;
		case 26: lease.mtu = size >= 2 ? get16(v) : 0; break;
		}
	}
}

static int dhcp_ask(struct net *n, u8 type, u8 answer)
{
	static u8 m[300];
	u8 *o = m + 240;
	u64 t0 = rdtsc();

	memset(m, 0, sizeof m);
	put32(m, 0x01010600);
	put32(m + 4, lease.xid);
	put16(m + 10, 0x8000);	// answer by broadcast: there is no address yet
	memcpy(m + 28, n->mac, 6);
	put32(m + 236, 0x63825363);
	*o++ = 53;
	*o++ = 1;
	*o++ = type;
	if (type == 3) {
		*o++ = 50;
		*o++ = 4;
		put32(o, lease.ip);
		*(o += 4) = 54;
		*++o = 4;
		put32(++o, lease.server);
		o += 4;
	}
	memcpy(o, "\x37\x04\x01\x03\x06\x1a\xff", 7);
	lease.type = 0;
	udp_send(n, broadcast, 0xffffffff, 67, 68, m, sizeof m);
	net_flush(n);
	while (lease.type != answer && us_of(rdtsc() - t0) < DHCP_MS * 1000ul && !n->broken)
		net_step(n);
	return lease.type == answer;
}

int net_address(struct net *n)
{
	udp_handler was = n->udp;
	int got;

	n->ip = 0;
	n->udp = dhcp_input;
	memset(&lease, 0, sizeof lease);
	lease.xid = rdtsc();
	got = !opt("static") && dhcp_ask(n, 1, 2) && dhcp_ask(n, 3, 5);
	n->udp = was;
	n->ip = got ? lease.ip : OWN;
	n->mask = got && lease.mask ? lease.mask : 0xffffff00;
	n->gw = got ? lease.gw : GATEWAY;
	n->dns = got ? lease.dns : RESOLVER;
	n->hop = n->gw ? n->gw : (n->ip & n->mask) | 2;
	return got;
}

int net_gateway(struct net *n, u32 ms) { return arp_find(n, n->hop, ms, n->gw_mac); }

// DNS (RFC 1035 §4.1): the first A record of the answer, or the code.
static struct { u16 id; int got, code; u32 ip; } dns;

static u32 dns_name(const u8 *p, u32 at, u32 len)
{
	while (at < len && p[at] && p[at] < 0xc0)
		at += 1 + p[at];
	return at < len && p[at] ? at + 2 : at + 1;
}

static void dns_input(struct net *n, u32 src, u16 sport, u16 dport, u8 *p, u32 len)
{
	u32 at = 12, answers;

	if (src != n->dns || sport != 53 || dport != dns.id || len < 12 || get16(p) != dns.id || !(p[2] & 0x80))
		return;
	dns.got = 1;
	dns.code = p[3] & 15;
	answers = get16(p + 6);
	for (u32 i = get16(p + 4); i && at < len; i--)
		at = dns_name(p, at, len) + 4;
	for (; answers && at < len; answers--) {
		at = dns_name(p, at, len);
		if (at + 10 > len)
			return;
		if (get16(p + at) == 1 && get16(p + at + 8) == 4 && at + 14 <= len)
			dns.ip = get32(p + at + 10);
		at += 10 + get16(p + at + 8);
	}
}

static void dns_check(struct net *n)
{
	static const char query[] = "\x04host\x07smolvmm\x08internal\0\0\1\0";
	u8 m[12 + sizeof query] = { 0 };
	u64 t0 = rdtsc();

	dns.id = 0xc000 | (t0 & 0x3fff);
	dns.got = dns.ip = 0;
	put16(m, dns.id);
	m[2] = 1;	// recursion, please
	m[5] = 1;
	memcpy(m + 12, query, sizeof query);
	m[11 + sizeof query] = 1;	// class IN: the string's own zero gives way
	n->udp = dns_input;
	udp_send(n, n->gw_mac, n->dns, 53, dns.id, m, sizeof m);
	net_flush(n);
	while (!dns.got && us_of(rdtsc() - t0) < ANSWER_MS * 1000ul && !n->broken)
		net_step(n);
	n->udp = NULL;
	if (!dns.got)
		absent("net_dns", n);
	else if (dns.code || dns.ip != n->gw)
		(lax ? skip : fail)("net_dns", "dev=%u name=host.smolvmm.internal code=%d ip=%u.%u.%u.%u", n->d->n, dns.code, DOTTED(dns.ip));
	else
		ok("net_dns", "dev=%u name=host.smolvmm.internal ip=%u.%u.%u.%u us=%lu", n->d->n, DOTTED(dns.ip), us_of(rdtsc() - t0));
}

static int pings(struct net *n, const char *what)
{
	u32 sizes[] = { 56, 0, 1, n->mtu - 28 }, size;
	u64 us, first = 0;

	for (u32 i = 0; i < COUNT(sizes); i++) {
		size = lax && sizes[i] > 1472 ? 1472 : sizes[i];
		if (!ping(n, n->hop, size, ANSWER_MS, &us)) {
			absent(what, n);
			return 0;
		}
		if (!i)
			first = us;
	}
	ok(what, "dev=%u features=0x%lx us=%lu largest=%u us_largest=%lu merged=%u", n->d->n, n->d->features, first, sizes[3], us, n->merged);
	return 1;
}

static void expect(struct net *n, const char *what, u8 got, u8 want, u32 *wrong)
{
	if (got == want)
		return;
	fail("net_ctrl", "dev=%u %s: answer %u, expected %u", n->d->n, what, got, want);
	++*wrong;
}

// by_interrupt asks, and does not look for the answer before an interrupt has
// told of it, however quick the network was.
static void by_interrupt(struct net *n)
{
	u64 t0, irqs;

	do {	// what still comes of before is not meant
		wait_irq();
		vq_want_irq(n->rx);
	} while (net_poll(n));
	vq_want_irq(n->rx);
	irqs = n->d->irqs;
	t0 = rdtsc();
	arp_ask(n, n->hop);
	net_flush(n);
	do {
		for (; n->d->irqs == irqs; wait_irq())
			if (us_of(rdtsc() - t0) > ANSWER_MS * 1000ul) {
				fail("net_irq", "dev=%u no interrupt, used=%u seen=%u isr=%u", n->d->n, n->rx->used->idx, n->rx->last_used, reg(n->d, R_ISR));
				return;
			}
		irqs = n->d->irqs;
	} while (!net_poll(n));	// one that was not for this
	ok("net_irq", "dev=%u us=%lu", n->d->n, us_of(rdtsc() - t0));
}

// commands drives the control queue: receive modes, the MAC table, an address
// of the driver's own, and what must be refused.
static void commands(struct net *n)
{
	u8 on[1] = { 1 }, none[1] = { 0 }, other[6], table[8 + 12];
	u32 wrong = 0;
	u64 us;

	if (n->d->features & N_CTRL_RX)
		for (u8 cmd = 0; cmd < 2; cmd++) {	// promiscuous, all multicast
			expect(n, "receive mode on", net_command(n, CTRL_RX, cmd, on, 1), CTRL_OK, &wrong);
			expect(n, "receive mode off", net_command(n, CTRL_RX, cmd, none, 1), CTRL_OK, &wrong);
		}
	if (n->d->features & N_CTRL_RX) {
		*(u32 *)table = 1;	// one unicast address, one multicast
		memcpy(table + 4, n->mac, 6);
		*(u32 *)(table + 10) = 1;
		memcpy(table + 14, "\x33\x33\0\0\0\1", 6);
		expect(n, "MAC table", net_command(n, CTRL_MAC, 0, table, sizeof table), CTRL_OK, &wrong);
	}
	if (n->d->features & N_CTRL_MAC_ADDR) {
		memcpy(other, n->mac, 6);
		n->mac[5] ^= 0x80;
		expect(n, "MAC address", net_command(n, CTRL_MAC, 1, n->mac, 6), CTRL_OK, &wrong);
		if (n->ip && net_gateway(n, ANSWER_MS) && !ping(n, n->hop, 56, ANSWER_MS, &us) && !lax) {
			fail("net_ctrl", "dev=%u no answer at the new MAC address", n->d->n);
			wrong++;
		}
		memcpy(n->mac, other, 6);
		expect(n, "MAC address back", net_command(n, CTRL_MAC, 1, n->mac, 6), CTRL_OK, &wrong);
		if (n->ip)
			net_gateway(n, ANSWER_MS);
	}
	expect(n, "an unknown command", net_command(n, CTRL_MAC, 77, on, 1), CTRL_ERR, &wrong);
	expect(n, "an unknown class", net_command(n, 200, 0, on, 1), CTRL_ERR, &wrong);
	if (!wrong)
		ok("net_ctrl", "dev=%u rx=%d mac=%d", n->d->n, !!(n->d->features & N_CTRL_RX), !!(n->d->features & N_CTRL_MAC_ADDR));
}

// again is the same with other features and buffers.
static void again(struct net *n, struct vdev *d, const char *what, u64 features, u32 rxbuf, int split)
{
	struct net was = *n;

	if (!net_init(n, d, features, rxbuf))
		return;
	n->split = split;
	if (n->mtu > was.mtu)	// without the feature MTU the device does not tell
		n->mtu = was.mtu;
	n->ip = was.ip;
	n->mask = was.mask;
	n->gw = was.gw;
	n->hop = was.hop;
	n->dns = was.dns;
	if (!net_gateway(n, ANSWER_MS))
		absent(what, n);
	else
		pings(n, what);
	n->lost += was.lost;
	n->bad += was.bad;
	n->badsum += was.badsum;
	n->malformed += was.malformed;
	n->rx_frames += was.rx_frames;
	n->tx_frames += was.tx_frames;
}

// MUST is what this project's device always offers.
#define MUST (F_INDIRECT | F_EVENT_IDX | N_MAC | N_STATUS | N_MTU | N_MRG_RXBUF | N_CTRL_VQ | N_CTRL_RX | N_CTRL_MAC_ADDR)

void net_check(struct vdev *d)
{
	static struct net n;
	u64 irqs = d->irqs, t0, all = net_features();
	int here;

	if (!net_init(&n, d, all, 0))
		return;
	ok("net", "dev=%u at=0x%lx pin=%u mac=%02x:%02x:%02x:%02x:%02x:%02x mtu=%u link=%u queues=%u,%u,%u features=0x%lx offered=0x%lx", d->n, d->base, d->pin,
	   n.mac[0], n.mac[1], n.mac[2], n.mac[3], n.mac[4], n.mac[5], n.mtu, net_status(&n), n.rx->max, n.tx->max, n.ctl ? n.ctl->max : 0, d->features, d->offered);
	if (d->features & N_MAC && (n.mac[0] & 1 || !(n.mac[0] | n.mac[1] | n.mac[2] | n.mac[3] | n.mac[4] | n.mac[5])))
		fail("net", "dev=%u the MAC address is no interface's", d->n);
	if (!lax && (d->offered & MUST) != MUST)
		fail("net", "dev=%u offers 0x%lx, but not all of 0x%lx", d->n, d->offered, MUST);
	t0 = rdtsc();
	if (net_address(&n))
		ok("net_dhcp", "dev=%u ip=%u.%u.%u.%u gateway=%u.%u.%u.%u dns=%u.%u.%u.%u mtu=%u us=%lu", d->n, DOTTED(n.ip), DOTTED(n.gw), DOTTED(n.dns), lease.mtu,
		   us_of(rdtsc() - t0));
	else
		skip("net_dhcp", "dev=%u no lease: 10.0.2.15", d->n);
	if (!lax && lease.mtu && d->features & N_MTU && lease.mtu != rd16(d->base + R_CONFIG + C_MTU))
		fail("net_dhcp", "dev=%u mtu=%u, the device says %u", d->n, lease.mtu, rd16(d->base + R_CONFIG + C_MTU));
	t0 = rdtsc();
	here = net_gateway(&n, ANSWER_MS);
	if (here)
		ok("net_arp", "dev=%u mac=%02x:%02x:%02x:%02x:%02x:%02x us=%lu", d->n, n.gw_mac[0], n.gw_mac[1], n.gw_mac[2], n.gw_mac[3], n.gw_mac[4], n.gw_mac[5],
		   us_of(rdtsc() - t0));
	else
		absent("net_arp", &n);
	if (here)
		pings(&n, "net_ping");
	if (here)
		by_interrupt(&n);
	if (here && n.dns)
		dns_check(&n);
	if (n.ctl)
		commands(&n);
	if (here && !n.broken) {
		if (d->offered & N_MRG_RXBUF)
			again(&n, d, "net_merge", all, 512, 0);
		again(&n, d, "net_split", all & ~(u64)N_MRG_RXBUF, 0, 1);
		again(&n, d, "net_plain", 0, 0, 0);
	}
	net_drain(&n);
	if (n.lost || n.bad || n.malformed || n.badsum)
		fail("net_irqs", "dev=%u lost=%u bad=%u malformed=%u badsum=%u", d->n, n.lost, n.bad, n.malformed, n.badsum);
	else
		ok("net_irqs", "dev=%u irqs=%lu spurious=%lu rx=%lu tx=%lu", d->n, d->irqs - irqs, d->spurious, n.rx_frames, n.tx_frames);
	timer_set(0, 0);
	virtio_reset(d);
}

int net_one(struct net *n)
{
	struct vdev *d = net_device(opt_number("net", 0));

	if (!d) {
		fail("net", "no interface %lu", opt_number("net", 0));
		return 0;
	}
	if (!net_init(n, d, net_features(), opt_number("rxbuf", 0)))
		return 0;
	net_address(n);
	if (!net_gateway(n, ANSWER_MS)) {
		fail("net_arp", "dev=%u no answer from the gateway", d->n);
		return 0;
	}
	return 1;
}

void echo_udp(struct net *n, u32 src, u16 sport, u16 dport, u8 *p, u32 len)
{
	if (dport != 7)
		return;
	udp_send(n, n->from, src, sport, dport, p, len);
	if (len >= 4 && len <= 5 && !memcmp(p, "quit", 4))
		quit = 1;
}

// netecho: answers ARP, ping and UDP port 7 until a datagram "quit".
void mode_netecho(const char *v)
{
	static struct net n;

	(void)v;
	if (!net_one(&n))
		return;
	n.udp = echo_udp;
	ok("netecho", "ip=%u.%u.%u.%u port=7 mtu=%u", DOTTED(n.ip), n.mtu);
	while (!quit && !n.broken)
		net_step(&n);
	net_drain(&n);
	if (n.broken || n.lost || n.bad)
		fail("netecho", "status=0x%x lost=%u bad=%u", reg(n.d, R_STATUS), n.lost, n.bad);
	else
		ok("netecho", "rx=%lu tx=%lu malformed=%u badsum=%u", n.rx_frames, n.tx_frames, n.malformed, n.badsum);
	virtio_reset(n.d);
}
