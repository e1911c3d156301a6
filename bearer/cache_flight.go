package bearer

import "context"

// flight is one check of a signature that others wait for.
type flight struct {
	done chan struct{} // closed at its end
	p    *proof        // set before that; nil: it has shown nothing
}

// once has establish run, or waits for another that runs it for the same token. What the other has shown is taken as if it
// had been remembered: this caller's keys, time and deadline are its own. What the other could not show is nobody else's
// refusal: this caller tries for itself.
func (s *shard) once(ctx context.Context, n name, establish func() (*proof, *Error)) (*proof, *Error) {
	s.mu.Lock()
	f := s.flights[n]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flights[n] = f
		s.mu.Unlock()
		return s.lead(f, n, establish)
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, &Error{Code: codeCanceled, Err: ctx.Err()}
	}
	if f.p != nil {
		standing, refusal := f.p.stands()
		if refusal != nil {
			return nil, refusal
		}
		if standing {
			s.hits.Add(1)
			return f.p, nil
		}
	}
	s.misses.Add(1)
	p, refusal := establish()
	if p != nil {
		p.name = n
	}
	return p, refusal
}

// lead runs establish for all who wait.
func (s *shard) lead(f *flight, n name, establish func() (*proof, *Error)) (p *proof, refusal *Error) {
	s.misses.Add(1)
	defer func() { // also when establish panics: nobody may wait for ever
		f.p = p
		s.mu.Lock()
		delete(s.flights, n)
		s.mu.Unlock()
		close(f.done)
	}()
	p, refusal = establish()
	if p != nil {
		p.name = n
	}
	return p, refusal
}
