package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	saveEvery    = time.Minute
	webhookTries = 5
	webhookWait  = time.Second     // before the second try, and twice as long before each next
	maxActs      = 64              // alarms at once: a token is ended here before the store has it, and not behind another's
	maxSends     = 256             // alarms that wait to be sent
	lastSends    = 5 * time.Second // for those that wait when the watch ends
)

// Run acts upon alarms until ctx ends, and then upon those that wait.
func (w *Watcher) Run(ctx context.Context) error {
	sends := make(chan *Alarm, maxSends)
	sent := make(chan struct{})
	sending, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastSends, end) })()
	go func() {
		defer close(sent)
		for a := range sends {
			w.send(ctx, sending, a)
		}
	}()
	defer func() { <-sent }()
	defer close(sends)
	var acting sync.WaitGroup
	defer acting.Wait()
	places := make(chan struct{}, maxActs)
	act := func(t *work) {
		places <- struct{}{}
		acting.Go(func() {
			defer func() { <-places }()
			w.act(t, sends)
		})
	}
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	for {
		select {
		case t := <-w.todo:
			act(t)
		case <-save.C:
			w.save()
		case <-ctx.Done():
			for {
				select {
				case t := <-w.todo:
					act(t)
				default:
					w.save()
					return nil
				}
			}
		}
	}
}

// act is the straight line of an alarm: quarantine, record, send. The token is ended first: that is on record by itself, and
// of all three it is what cannot wait.
func (w *Watcher) act(t *work, sends chan<- *Alarm) {
	a := *t.alarm
	w.log.Warn("alarm", "rule", a.Rule, "says", a.Says, "record", a.Record, "code", a.Code, "subject", a.Subject, "source", a.Source)
	if t.rule.does(doQuarantine) {
		w.quarantine(t.rule, &a)
	}
	if t.rule.does(doRecord) {
		w.record(&a)
	}
	w.mu.Lock()
	t.alarm.Did, t.alarm.Not = a.Did, a.Not
	w.mu.Unlock()
	if !t.rule.does(doWebhook) || w.config.Webhook == nil {
		return
	}
	select {
	case sends <- &a:
	default:
		w.metrics.webhook.WithLabelValues("lost").Inc()
		w.log.Error("an alarm is not sent: too many wait for the webhook", "rule", a.Rule, "alarm", a.ID)
	}
}

// quarantine ends the token, and with the rule's leave those of its subject.
func (w *Watcher) quarantine(r *Rule, a *Alarm) {
	if a.TokenID == "" && a.Digest == "" {
		a.Not = "it is not known whose token caused it: nothing was revoked"
		w.metrics.quarantine.WithLabelValues("nobody").Inc()
		return
	}
	now := a.Time
	end := func(what string, rev state.Revocation) {
		rev.Issuer, rev.By, rev.Reason = a.Issuer, "watch", r.Name+" ("+a.Record+")"
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.config.Revoke(ctx, rev); err != nil {
			a.Not = fmt.Sprintf("%s: %v", what, err)
			w.metrics.quarantine.WithLabelValues("failed").Inc()
			w.log.Error("quarantine", "rule", r.Name, "alarm", a.ID, "error", err)
			return
		}
		a.Did = append(a.Did, what)
		w.metrics.quarantine.WithLabelValues("done").Inc()
	}
	until := now.Add(w.config.Lifetime(a.Issuer))
	end(doQuarantine, state.Revocation{TokenID: a.TokenID, Digest: a.Digest, Until: until})
	if r.Subject > 0 && a.Subject != "" {
		end("quarantine subject", state.Revocation{Subject: a.Subject, Before: now.Add(r.Subject).Truncate(time.Second), Until: until.Add(r.Subject)})
	}
}

// record puts an alarm into the log.
func (w *Watcher) record(a *Alarm) {
	d := map[string]any{"record": a.Record, "code": a.Code, "says": a.Says}
	put := func(name, value string) {
		if value != "" {
			d[name] = value
		}
	}
	put("issuer", a.Issuer)
	put("token_id", a.TokenID)
	put("token_digest", a.Digest)
	put("subject", a.Subject)
	put("client", a.Client)
	put("source", a.Source)
	put("route", a.Route)
	put("not", a.Not)
	if len(a.Requests) > 0 {
		d["requests"] = a.Requests
	}
	if len(a.Did) > 0 {
		d["did"] = a.Did
	}
	err := w.config.Record(audit.Record{ID: a.ID, Time: a.Time, Point: "watch", Decision: policy.Deny(policy.Code(a.Rule), a.Says), Detail: d})
	if err != nil {
		w.log.Error("record an alarm", "rule", a.Rule, "alarm", a.ID, "error", err)
	}
}

// send posts an alarm to the webhook, and again if that does not work and ctx has not ended. Nothing is posted after sending.
func (w *Watcher) send(ctx, sending context.Context, a *Alarm) {
	body, err := json.Marshal(a)
	if err != nil {
		w.log.Error("send an alarm", "alarm", a.ID, "error", err)
		return
	}
	wait := webhookWait
	for try := range webhookTries {
		if try > 0 {
			select {
			case <-time.After(wait):
				wait *= 2
			case <-ctx.Done():
			}
		}
		if err = w.post(sending, body); err == nil {
			w.metrics.webhook.WithLabelValues("sent").Inc()
			return
		}
		if ctx.Err() != nil {
			break
		}
	}
	w.metrics.webhook.WithLabelValues("failed").Inc()
	w.log.Error("send an alarm to the webhook", "alarm", a.ID, "rule", a.Rule, "error", err)
}

func (w *Watcher) post(ctx context.Context, body []byte) error {
	hook := w.config.Webhook
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, hook.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	if hook.Secret != nil {
		secret, err := hook.Secret()
		if err != nil {
			return fmt.Errorf("read the webhook's secret: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	res, err := hook.Client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("it answered %s", res.Status)
	}
	return nil
}

// metrics have fixed labels: rules are those of the configuration.
type metrics struct {
	alarms, quarantine, webhook *prometheus.CounterVec
	lost                        prometheus.Counter
}

func newMetrics(to prometheus.Registerer, w *Watcher) (*metrics, error) {
	m := &metrics{
		alarms:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_alarms_total", Help: "Alarms, by rule."}, []string{"rule"}),
		quarantine: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_quarantine_total", Help: "Revocations after an alarm, by result."}, []string{"result"}),
		webhook:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_webhook_total", Help: "Alarms for the webhook, by result."}, []string{"result"}),
		lost:       prometheus.NewCounter(prometheus.CounterOpts{Name: "sallyport_alarms_lost_total", Help: "Alarms that were not acted upon, too many at once."}),
	}
	for _, r := range w.rules {
		m.alarms.WithLabelValues(r.Name)
	}
	if to == nil {
		return m, nil
	}
	learning := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sallyport_watch_learned_seconds", Help: "For how long it has been learned what is not new."},
		func() float64 { return w.now().Sub(w.book.since).Seconds() })
	for _, c := range []prometheus.Collector{m.alarms, m.quarantine, m.webhook, m.lost, learning} {
		if err := to.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
