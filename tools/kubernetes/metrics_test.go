package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// gauges stand in for an adapter of custom metrics: each pod that is asked for has the same values. The API server,
// its aggregation and the autoscaler are real.
type gauges struct {
	kube    *cluster
	waiting atomic.Int64 // of each pod
	kv      atomic.Int64 // in thousandths
	asked   atomic.Int64
}

const customMetrics = "/apis/custom.metrics.k8s.io/v1beta2"

func (g *gauges) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	rest, ok := strings.CutPrefix(r.URL.Path, customMetrics)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if rest == "" || rest == "/" {
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"custom.metrics.k8s.io/v1beta2","resources":[
 {"name":"pods/mmserve_requests_waiting","singularName":"","namespaced":true,"kind":"MetricValueList","verbs":["get"]},
 {"name":"pods/mmserve_kv_utilization_ratio","singularName":"","namespaced":true,"kind":"MetricValueList","verbs":["get"]}]}`)
		return
	}
	// /namespaces/NAME/pods/*/METRIC
	part := strings.Split(strings.Trim(rest, "/"), "/")
	if len(part) != 5 || part[0] != "namespaces" || part[2] != "pods" {
		http.NotFound(w, r)
		return
	}
	var value *resource.Quantity
	switch part[4] {
	case "mmserve_requests_waiting":
		g.asked.Add(1)
		value = resource.NewQuantity(g.waiting.Load(), resource.DecimalSI)
	case "mmserve_kv_utilization_ratio":
		value = resource.NewMilliQuantity(g.kv.Load(), resource.DecimalSI)
	default:
		http.NotFound(w, r)
		return
	}
	g.list(w, r, part[1], part[4], value)
}

// list answers with the value for each pod that is ready.
func (g *gauges) list(w http.ResponseWriter, r *http.Request, namespace, metric string, value *resource.Quantity) {
	pods, err := g.kube.kube.CoreV1().Pods(namespace).List(r.Context(),
		metav1.ListOptions{LabelSelector: r.URL.Query().Get("labelSelector")})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	items := []any{}
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			items = append(items, map[string]any{
				"describedObject": map[string]any{"kind": "Pod", "namespace": namespace, "name": p.Name, "apiVersion": "/v1"},
				"metric":          map[string]any{"name": metric},
				"timestamp":       time.Now().UTC().Format(time.RFC3339),
				"value":           value.String(),
			})
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": map[string]any{}, "items": items,
	})
}

// register has the API server ask the stand-in for custom metrics.
func (g *gauges) register(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", metricsPort))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(g)
	s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	g.kube.createAll(t, "kube-system", fmt.Appendf(nil, `
apiVersion: v1
kind: Service
metadata: {name: custom-metrics}
spec: {type: ExternalName, externalName: localhost, ports: [{port: %d}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta2.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta2
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: kube-system, name: custom-metrics, port: %d}
`, metricsPort, metricsPort))
	eventually(t, time.Minute, "custom metrics are asked for", func() error {
		return g.kube.kube.Discovery().RESTClient().Get().AbsPath(customMetrics).Do(t.Context()).Error()
	})
}
