// Package aggregate passes requests for some group versions on to other API servers, as APIService objects say:
// metrics-server and its like.
//
// Aggregator follows the APIServices. A group version whose APIService names a service is a Target: requests for it go
// to an endpoint of that service, with the caller's name, groups and extra in headers that the other server believes,
// because our front-proxy certificate vouches for them. Aggregator also fetches what those servers say about
// themselves, for discovery and OpenAPI.
//
// The package decides nothing about who may ask; and it writes nothing: the conditions of APIServices are kept by
// internal/controller/apiservice, with Aggregator.Check. Start at Aggregator.Target and Target.Serve.
package aggregate
