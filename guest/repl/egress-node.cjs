// SPDX-License-Identifier: Apache-2.0
//
// Node.js and the proxy of egress. What a Node that knows NODE_USE_ENV_PROXY (22.21, 24.5) does by
// itself, for those before, Debian's among them: fetch(), http and https go through the proxy that
// HTTP_PROXY and HTTPS_PROXY name, except to what NO_PROXY lists. NODE_OPTIONS asks for this file while
// a sandbox has egress (src/agent/egress_files.c); a program's own agent or dispatcher stays its own.
//
// https is a tunnel (CONNECT) in which Node itself speaks TLS; a plain request is sent to the proxy
// with its whole URL, since the proxy decides on each of them. Nothing is loaded or opened before the
// first request.
'use strict';

const http = require('http');
const https = require('https');
const net = require('net');
const tls = require('tls');

const DISPATCHER = Symbol.for('undici.globalDispatcher.1'); // where fetch() looks for its own

/** A variable's value in small letters first, as curl and others do. */
function variable(name) {
  return process.env[name.toLowerCase()] || process.env[name.toUpperCase()] || '';
}

/** Whether NO_PROXY has the host: a name, a name and what is below it, a port with it, or "*". */
function isExcepted(host, port) {
  return variable('no_proxy')
    .split(/[\s,]+/)
    .filter(Boolean)
    .some((entry) => {
      const [, name, only] = /^(.*?)(?::(\d+))?$/.exec(net.isIPv6(entry) ? `[${entry}]` : entry);
      const plain = name.replace(/^\*?\.|^\[|\]$/g, '').toLowerCase();
      if (only && Number(only) !== port) return false;
      return name === '*' || host === plain || (!net.isIP(host) && host.endsWith(`.${plain}`));
    });
}

/** URL of the proxy for a request, or null when it goes straight there. */
function proxyFor(secure, host, port) {
  const url = variable(secure ? 'https_proxy' : 'http_proxy');
  const bare = String(host).replace(/^\[|\]$/g, '').toLowerCase();
  if (!url || isExcepted(bare, Number(port) || (secure ? 443 : 80))) return null;
  try {
    const proxy = new URL(url.includes('://') ? url : `http://${url}`);
    return proxy.protocol === 'http:' ? proxy : null;
  } catch {
    return null;
  }
}

function connectTo(proxy) {
  return net.connect(Number(proxy.port) || 80, proxy.hostname.replace(/^\[|\]$/g, ''));
}

/** An address as it stands in a URL: host:port, with the brackets of IPv6. */
function authority(host, port) {
  const bare = String(host).replace(/^\[|\]$/g, '');
  return `${net.isIPv6(bare) ? `[${bare}]` : bare}:${port}`;
}

/** Asks the proxy for a tunnel; done(error, socket) once. What a refusal says is in the error. */
function openTunnel(proxy, host, port, done) {
  const target = authority(host, port);
  const request = http.request({
    createConnection: () => connectTo(proxy),
    method: 'CONNECT',
    path: target,
    headers: { host: target },
    setHost: false,
  });
  request.once('connect', (reply, socket, head) => {
    if (reply.statusCode === 200) {
      if (head.length) socket.unshift(head);
      done(null, socket);
      return;
    }
    // The reason is the body, a line of JSON. It may have come with the head.
    const length = Math.min(Number(reply.headers['content-length']) || 0, 4096);
    let text = head.toString();
    const stop = () => {
      if (Buffer.byteLength(text) >= length) socket.destroy();
    };
    socket.on('error', () => {});
    socket.setTimeout(5000, () => socket.destroy());
    socket.once('close', () => {
      const why = `${reply.statusCode} ${text.trim()}`;
      const error = new Error(`the proxy refused a connection to ${target}: ${why}`);
      error.code = 'ERR_PROXY_TUNNEL';
      done(error);
    });
    socket.on('data', (data) => {
      text += data;
      stop();
    });
    stop();
  });
  request.once('error', (error) => done(error));
  request.end();
}

/** http.Agent for plain requests: a connection to the proxy, and the whole URL in the request. */
class ProxiedHttpAgent extends http.Agent {
  addRequest(request, options, ...more) {
    const port = options.port || 80;
    if (!options.socketPath && proxyFor(false, options.host, port)) {
      const line = ` ${request.path} `;
      if (request.path.startsWith('/')) {
        request.path = `http://${authority(options.host, port).replace(/:80$/, '')}${request.path}`;
      }
      // With headers that were given as a list the head is there already.
      if (request._header) request._header = request._header.replace(line, () => ` ${request.path} `);
    }
    return super.addRequest(request, options, ...more);
  }

  createConnection(options, done) {
    const proxy = options.socketPath ? null : proxyFor(false, options.host, options.port);
    return proxy ? connectTo(proxy) : super.createConnection(options, done);
  }
}

/** https.Agent whose connections are tunnels. */
class ProxiedHttpsAgent extends https.Agent {
  createConnection(options, done) {
    const proxy = options.socketPath ? null : proxyFor(true, options.host, options.port);
    if (!proxy) return super.createConnection(options, done);
    openTunnel(proxy, options.host, options.port, (error, socket) => {
      if (error) {
        done(error);
        return;
      }
      try {
        // Through the agent's own way: it keeps TLS sessions.
        done(null, super.createConnection({ ...options, socket }));
      } catch (failure) {
        done(failure);
      }
    });
    return undefined; // it comes by done()
  }
}

/** The connector that fetch() opens its connections with. */
function connectForFetch(options, done) {
  const secure = options.protocol === 'https:';
  const port = Number(options.port) || (secure ? 443 : 80);
  const host = String(options.hostname).replace(/^\[|\]$/g, '');
  const proxy = proxyFor(secure, host, port);
  const secured = (socket) => {
    const servername = options.servername || (net.isIP(host) ? '' : host);
    const own = tls.connect({ socket, host, port, servername, ALPNProtocols: ['http/1.1'] });
    settle(own, 'secureConnect');
  };
  const settle = (socket, ready) => {
    const failed = (error) => done(error);
    socket.once('error', failed);
    socket.once(ready, () => {
      socket.removeListener('error', failed);
      done(null, socket);
    });
  };
  if (!secure) settle(proxy ? connectTo(proxy) : net.connect(port, host), 'connect');
  else if (!proxy) secured(net.connect(port, host));
  else openTunnel(proxy, host, port, (error, socket) => (error ? done(error) : secured(socket)));
}

/** Makes fetch() use the proxy, from the first call on: only then Node loads what it is made of. */
function wrapFetch() {
  const original = globalThis.fetch;
  let ready = null;

  async function prepare() {
    await original('data:,'); // has Node load it, and opens nothing
    const Agent = globalThis[DISPATCHER].constructor;

    class Proxied extends Agent {
      dispatch(options, handler) {
        const origin = new URL(options.origin);
        const port = Number(origin.port) || 80;
        const whole = origin.protocol === 'http:' && proxyFor(false, origin.hostname, port);
        return super.dispatch(
          whole ? { ...options, path: `${origin.origin}${options.path}` } : options, handler);
      }
    }
    globalThis[DISPATCHER] = new Proxied({ connect: connectForFetch });
  }

  const fetch = async function fetch(input, init = undefined) {
    ready ??= globalThis[DISPATCHER] === undefined ? prepare() : Promise.resolve();
    await ready;
    return original(input, init);
  };
  Object.defineProperty(globalThis, 'fetch', {
    value: fetch, writable: true, enumerable: true, configurable: true,
  });
}

if (process.env.NODE_USE_ENV_PROXY === '1' &&
    !process.allowedNodeEnvironmentFlags.has('--use-env-proxy')) {
  http.globalAgent = new ProxiedHttpAgent(http.globalAgent.options);
  https.globalAgent = new ProxiedHttpsAgent(https.globalAgent.options);
  if (typeof globalThis.fetch === 'function') wrapFetch();
}
