// TCP (RFC 9293): window scale (RFC 7323), cumulative acknowledgements, slow
// start and three duplicates as a sign of loss (RFC 5681); what is lost is sent
// again from there on, as is all behind it. What comes out of order is dropped.

#include "tcp.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

#define RTO_US 400000	// above a busy host's delays
#define RTO_MAX_US 3000000
#define TRIES 8
#define SCALE 7

static u64 tsc_of(u64 us) { return us * tsc_khz / 1000; }

const char *tcp_state(const struct tcp *c)
{
	static const char *const names[] = { "closed", "listening", "syn-sent", "syn-received", "open", "refused", "reset", "timed-out" };

	return names[c->state];
}

static u32 segment(struct net *n, struct tcp *c)
{
	return c->mss < n->mtu - 40 ? c->mss : n->mtu - 40;
}

static void emit(struct net *n, struct tcp *c, u8 flags, u32 seq, const u8 *p, u32 len)
{
	struct tx *t = net_slot(n);
	u32 hlen = flags & SYN ? 28 : 20;
	u64 wnd = flags & SYN ? c->rcv_wnd : c->rcv_wnd >> c->rcv_scale;
	u8 *h;

	if (!t)
		return;
	h = ip_frame(n, t, c->mac, c->rip, P_TCP, hlen + len);
	put16(h, c->lport);
	put16(h + 2, c->rport);
	put32(h + 4, seq);
	put32(h + 8, flags & ACK ? c->irs + 1 + (u32)c->rcv : 0);
	h[12] = hlen << 2;
	h[13] = flags;
	put16(h + 14, wnd > 65535 ? 65535 : wnd);
	put32(h + 16, 0);
	if (flags & SYN) {
		put32(h + 20, 0x02040000 | (n->mtu - 40));	// MSS
		put32(h + 24, 0x01030300 | SCALE);
	}
	l4_sum(n, t, hlen, 16, p, len);
	if (len > segment(n, c)) {
		t->h.gso_type = NH_TCPV4;
		t->h.gso_size = segment(n, c);
		t->h.hdr_len = ETH + 20 + hlen;
	}
	net_send(n, t, ETH + 20 + hlen, p, len);
	if (flags & ACK)
		c->ack_now = 0;
}

static void emit_syn(struct net *n, struct tcp *c)
{
	emit(n, c, c->state == TCP_SYN_RCVD ? SYN | ACK : SYN, c->iss, NULL, 0);
	c->due = rdtsc() + c->rto;
}

// start puts a connection into its first state; what the application has set
// stays.
static void start(struct tcp *c, u32 state)
{
	c->state = state;
	c->iss = rdtsc();
	c->una = c->nxt = c->max = c->rcv = c->due = 0;
	c->fin_acked = c->rcv_fin = 0;
	c->dups = c->ack_now = c->probe = c->tries = c->resent = c->unordered = 0;
	c->snd_scale = c->rcv_scale = 0;
	c->mss = 536;	// RFC 9293 §3.7.1, unless they say otherwise
	c->ssthresh = 1ul << 30;
	c->rto = tsc_of(RTO_US);
}

void tcp_open(struct net *n, struct tcp *c, u32 ip, u16 port)
{
	static u16 ports;

	if (!ports)
		ports = rdtsc() >> 4;
	c->rip = ip;
	c->rport = port;
	c->lport = 0xc000 | (ports++ & 0x3fff);
	memcpy(c->mac, n->gw_mac, 6);
	start(c, TCP_SYN_SENT);
	emit_syn(n, c);
	net_flush(n);
}

void tcp_listen(struct tcp *c, u16 port)
{
	c->lport = port;
	start(c, TCP_LISTEN);
}

void tcp_abort(struct net *n, struct tcp *c)
{
	if (c->state >= TCP_SYN_RCVD && c->state <= TCP_OPEN)
		emit(n, c, RST | ACK, c->iss + 1 + (u32)c->nxt, NULL, 0);
	c->state = TCP_CLOSED;
	net_flush(n);
}

// refuse answers what belongs to no connection (RFC 9293 §3.10.7.1).
static void refuse(struct net *n, u32 src, const u8 *p, u32 len)
{
	struct tcp c = { 0 };

	if (p[13] & RST)
		return;
	c.rip = src;
	c.lport = get16(p + 2);
	c.rport = get16(p);
	c.mss = 536;
	memcpy(c.mac, n->from, 6);
	c.irs = get32(p + 4) - 1 + len + !!(p[13] & SYN) + !!(p[13] & FIN);
	if (p[13] & ACK)
		emit(n, &c, RST, get32(p + 8), NULL, 0);
	else
		emit(n, &c, RST | ACK, 0, NULL, 0);
}

static void options(struct tcp *c, const u8 *o, const u8 *end)
{
	while (o < end && *o) {
		if (*o == 1) {
			o++;
			continue;
		}
		if (end - o < 2 || o[1] < 2 || o[1] > end - o)
			return;
		if (o[0] == 2 && o[1] == 4 && get16(o + 2))
			c->mss = get16(o + 2);
		if (o[0] == 3 && o[1] == 3) {
			c->snd_scale = o[2] < 14 ? o[2] : 14;
			c->rcv_scale = SCALE;
		}
		o += o[1];
	}
}

static void opened(struct net *n, struct tcp *c, const u8 *p)
{
	c->state = TCP_OPEN;
	c->cwnd = 10 * segment(n, c);	// RFC 6928
	c->snd_wnd = get16(p + 14);
	c->due = 0;
	c->tries = 0;
	c->rto = tsc_of(RTO_US);
	c->t0 = rdtsc();
}

static void lost(struct net *n, struct tcp *c)
{
	u64 least = 2 * segment(n, c);

	c->ssthresh = c->cwnd / 2 > least ? c->cwnd / 2 : least;
	c->nxt = c->una;
	c->resent++;
}

static void acknowledged(struct net *n, struct tcp *c, u32 ack, u64 wnd, u32 len)
{
	int d = ack - (c->iss + 1 + (u32)c->una);

	if (d > 0 && c->una + d <= c->max) {
		u64 mss = segment(n, c);

		c->una += d;
		if (c->nxt < c->una)
			c->nxt = c->una;
		c->cwnd += c->cwnd < c->ssthresh ? (u64)d : mss * d / c->cwnd;
		if (c->cwnd > 1ul << 30)
			c->cwnd = 1ul << 30;
		c->dups = c->tries = c->probe = 0;
		c->rto = tsc_of(RTO_US);
		c->due = c->una < c->max ? rdtsc() + c->rto : 0;
		c->fin_acked = c->fin && c->una > c->offered;
	} else if (d == 0 && !len && c->una < c->max && wnd == c->snd_wnd && ++c->dups == 3) {
		lost(n, c);
		c->cwnd = c->ssthresh;
	}
	if (d >= 0)
		c->snd_wnd = wnd;
}

static void data(struct tcp *c, u32 seq, const u8 *p, u32 len, int fin)
{
	int d = seq - (c->irs + 1 + (u32)c->rcv);
	u32 old = -d;

	if (!len && !fin)
		return;
	c->ack_now = 1;
	if (d > 0) {
		c->unordered++;
		return;
	}
	if (c->rcv_fin || old >= len + fin)
		return;
	if (len - old > c->rcv_wnd) {
		len = old + c->rcv_wnd;
		fin = 0;
	}
	if (len > old) {
		c->rcv += len - old;
		c->take(c, p + old, len - old);
	}
	if (fin) {
		c->rcv++;
		c->rcv_fin = 1;
	}
}

static struct tcp *find(struct net *n, u32 src, u16 sport, u16 dport, int syn)
{
	struct tcp *listener = NULL;

	for (u32 i = 0; i < n->nconns; i++) {
		struct tcp *c = &n->conns[i];

		if (c->lport != dport)
			continue;
		if (c->state == TCP_LISTEN)
			listener = c;
		else if (c->state >= TCP_SYN_SENT && c->state <= TCP_OPEN && c->rip == src && c->rport == sport)
			return c;
	}
	return syn ? listener : NULL;
}

void tcp_input(struct net *n, u32 src, u8 *p, u32 len)
{
	u32 hlen = (p[12] >> 4) * 4, seq = get32(p + 4), ack = get32(p + 8);
	u8 flags = p[13];
	struct tcp *c = find(n, src, get16(p), get16(p + 2), (flags & (SYN | ACK | RST)) == SYN);

	if (hlen < 20 || hlen > len) {
		n->malformed++;
		return;
	}
	len -= hlen;
	if (!c) {
		// Where all places are taken a SYN is let drop: it comes again.
		for (u32 i = 0; i < n->nconns; i++)
			if (flags & SYN && n->conns[i].role && n->conns[i].lport == get16(p + 2))
				return;
		refuse(n, src, p, len);
		return;
	}
	switch (c->state) {
	case TCP_LISTEN:
		start(c, TCP_SYN_RCVD);
		c->rip = src;
		c->rport = get16(p);
		memcpy(c->mac, n->from, 6);
		c->irs = seq;
		options(c, p + 20, p + hlen);
		emit_syn(n, c);
		return;
	case TCP_SYN_SENT:
		if (flags & ACK && ack != c->iss + 1) {
			refuse(n, src, p, len);
			return;
		}
		if (flags & ACK && flags & RST)
			c->state = TCP_REFUSED;
		if ((flags & (SYN | ACK | RST)) != (SYN | ACK))
			return;
		c->irs = seq;
		options(c, p + 20, p + hlen);
		opened(n, c, p);
		c->ack_now = 1;
		return;
	}
	if (flags & RST) {
		if (seq - (c->irs + 1 + (u32)c->rcv) <= c->rcv_wnd)
			c->state = TCP_RESET;
		return;
	}
	if (flags & SYN) {
		if (c->state == TCP_SYN_RCVD && seq == c->irs)
			emit_syn(n, c);
		else
			c->ack_now = 1;
		return;
	}
	if (!(flags & ACK))
		return;
	if (c->state == TCP_SYN_RCVD) {
		if (ack != c->iss + 1)
			return;
		opened(n, c, p);
	}
	acknowledged(n, c, ack, (u64)get16(p + 14) << c->snd_scale, len);
	data(c, seq, p + hlen, len, flags & FIN);
}

static u64 least(u64 a, u64 b) { return a < b ? a : b; }

static void output(struct net *n, struct tcp *c)
{
	u64 mss = segment(n, c), big = n->d->features & N_HOST_TSO4 ? 65495 / mss * mss : mss, may, len, at;
	u64 limit = c->una + least(c->snd_wnd, c->cwnd);
	u64 told = n->tx_bytes;
	u32 burst = 0;
	u8 flags;

	if (c->probe && limit <= c->nxt)
		limit = c->nxt + 1;
	while (c->nxt < c->offered + (c->fin != 0) && net_room(n)) {
		at = c->nxt % c->src.period;
		may = limit > c->nxt ? limit - c->nxt : 0;
		len = least(least(big, c->src.period - at + c->src.slack), least(may, c->offered > c->nxt ? c->offered - c->nxt : 0));
		if (c->nxt < c->offered && c->nxt + len < c->offered) {
			if (len > mss)
				len -= len % mss;
			// No sliver while more is under way (RFC 9293 §3.8.6.2.1).
			if (!len || (len < mss && len == may && c->nxt > c->una))
				break;
		}
		flags = ACK | (c->nxt + len >= c->offered ? PSH : 0) | (c->fin && c->nxt + len >= c->offered ? FIN : 0);
		emit(n, c, flags, c->iss + 1 + (u32)c->nxt, c->src.base + at, len);
		c->nxt += len + (flags & FIN);
		if (c->nxt > c->max)
			c->max = c->nxt;
		if (++burst % BATCH == 0 || n->tx_bytes - told > BATCH_BYTES) {
			told = n->tx_bytes;
			net_flush(n);
		}
	}
	if (!c->due && (c->una < c->max || c->nxt < c->offered))
		c->due = rdtsc() + c->rto;	// also to ask again whether a closed window has opened
}

static void late(struct net *n, struct tcp *c)
{
	if (++c->tries > TRIES) {
		c->state = TCP_DEAD;
		return;
	}
	c->rto = least(2 * c->rto, tsc_of(RTO_MAX_US));
	if (c->state != TCP_OPEN) {
		c->resent++;
		emit_syn(n, c);
		return;
	}
	c->probe = c->snd_wnd < segment(n, c);
	if (c->una < c->max) {
		lost(n, c);
		c->cwnd = 2 * segment(n, c);
	}
	c->due = 0;
}

void tcp_batch(struct net *n)
{
	for (u32 i = 0; i < n->nconns; i++) {
		struct tcp *c = &n->conns[i];

		if (c->due && rdtsc() > c->due && c->state >= TCP_SYN_SENT && c->state <= TCP_OPEN)
			late(n, c);
		if (c->state != TCP_OPEN)
			continue;
		output(n, c);
		if (c->ack_now)
			emit(n, c, ACK, c->iss + 1 + (u32)c->nxt, NULL, 0);
	}
	net_flush(n);
}
