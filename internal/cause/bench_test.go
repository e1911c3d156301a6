package cause

import (
	"fmt"
	"testing"
)

func BenchmarkBeginDone(b *testing.B) {
	for _, callers := range []int{1, 1000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			f := NewFlight()
			requests := make([]Request, callers)
			for i := range requests {
				requests[i] = request("01J9ZK", "r", fmt.Sprint(i))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f.Begin(requests[i%callers]).Done()
			}
		})
	}
}

func BenchmarkWindow(b *testing.B) {
	for _, callers := range []int{1, 100, maxClasses} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			f := NewFlight()
			for i := range callers {
				for range 4 {
					f.Begin(request("01J9ZK", "r", fmt.Sprint(i)))
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				f.Window()
			}
		})
	}
}

func BenchmarkByCapability(b *testing.B) {
	f := NewFlight()
	var e *Entry
	for i := range 1000 {
		e = f.Begin(request("01J9ZK", "r", fmt.Sprint(i)))
	}
	b.ReportAllocs()
	for b.Loop() {
		f.ByCapability(e.Capability)
	}
}
