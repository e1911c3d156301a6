package oauth

import (
	"net/netip"
	"time"
)

const (
	tries       = 100                    // tokens that are not active, which one source may ask for at once
	tryEvery    = 100 * time.Millisecond // and one more each
	maxSources  = 8192                   // that are told apart; the rest have one budget in common
	commonTries = 10 * tries
	lookOver    = time.Second
)

// budget is how many more tokens that are not active each source may ask for. It holds those alone that have spent something.
// The zero value is ready. It must be guarded.
type budget struct {
	spent  map[netip.Addr]spending
	common spending
	looked time.Time
}

// spending is how much was spent, at a time; since then it has become less.
type spending struct {
	tries float64
	at    time.Time
}

func (s spending) now(now time.Time, speed float64) float64 {
	return max(0, s.tries-speed*float64(now.Sub(s.at))/float64(tryEvery))
}

// left reports whether a source may ask for a token that is not known.
func (b *budget) left(source netip.Addr, now time.Time) bool {
	if !source.IsValid() {
		return true
	}
	if s, ok := b.spent[network(source)]; ok {
		return s.now(now, 1) <= tries-1
	}
	return len(b.spent) < maxSources || b.forget(now) || b.common.now(now, commonTries/tries) <= commonTries-1
}

// spend says that a source's token was not active.
func (b *budget) spend(source netip.Addr, now time.Time) {
	if !source.IsValid() {
		return
	}
	source = network(source)
	s, ok := b.spent[source]
	if !ok && len(b.spent) >= maxSources && !b.forget(now) {
		b.common = spending{min(b.common.now(now, commonTries/tries)+1, commonTries), now}
		return
	}
	if b.spent == nil {
		b.spent = map[netip.Addr]spending{}
	}
	b.spent[source] = spending{min(s.now(now, 1)+1, tries), now}
}

// forget gives up those whose spending has become nothing, and reports whether there is room. It looks at all of them no more
// often than once a second.
func (b *budget) forget(now time.Time) bool {
	if now.Sub(b.looked) >= lookOver {
		b.looked = now
		for source, s := range b.spent {
			if s.now(now, 1) == 0 {
				delete(b.spent, source)
			}
		}
	}
	return len(b.spent) < maxSources
}

// network is who is taken for one source: an IPv4 address, or the /64 of an IPv6 one, of which each host has all.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, _ := a.Prefix(64) // an address has one
	return p.Addr()
}
