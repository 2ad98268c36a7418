"""The HTTP door: 201 placed, 204 done, 404 unknown, 409 too late, 422 cannot be meant, 503 try again.

POST  /orders               {"customer_id": "…", "total": "9.90"}   and optionally "order_id"
GET   /orders/{id}
PATCH /orders/{id}          {"total": "12.50"}
POST  /orders/{id}/cancel
GET   /health
"""

from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from examples.order_service.order import services
from examples.order_service.order.domain import (
    AlreadyCancelled,
    AlreadyPlaced,
    CreditExceeded,
    OrderError,
    UnknownOrder,
)
from examples.order_service.order.requests import ChangeOrder, PlaceOrder

STATUS: dict[type[OrderError], int] = {
    UnknownOrder: 404,
    AlreadyPlaced: 409,
    AlreadyCancelled: 409,
    CreditExceeded: 422,
}


async def place(request: Request) -> Response:
    body = PlaceOrder.model_validate_json(await request.body())
    order_id = await run_in_threadpool(
        services.place_order, body.customer_id, body.total, order_id=body.order_id
    )
    return JSONResponse({"order_id": str(order_id)}, 201, headers={"location": f"/orders/{order_id}"})


def show(request: Request) -> Response:
    order = services.find_order(_order_id(request))
    return JSONResponse(
        {
            "order_id": str(order.id),
            "customer_id": str(order.customer_id),
            "total": str(order.total),
            "revision": order.revision,
            "placed_at": order.placed_at.isoformat(),
            "cancelled_at": order.cancelled_at and order.cancelled_at.isoformat(),
        }
    )


async def change(request: Request) -> Response:
    body = ChangeOrder.model_validate_json(await request.body())
    await run_in_threadpool(services.change_order, _order_id(request), body.total)
    return Response(status_code=204)


def cancel(request: Request) -> Response:
    services.cancel_order(_order_id(request))
    return Response(status_code=204)


def health(_: Request) -> Response:
    with services.sessions() as session:
        session.execute(text("SELECT 1"))
    return JSONResponse({"status": "ok"})


def _order_id(request: Request) -> UUID:
    value: str = request.path_params["order_id"]
    try:
        return UUID(value)
    except ValueError:
        raise HTTPException(404, f"There is no order {value}: an order's id is a UUID.") from None


def _answer(status: int, message: str, **details: Any) -> JSONResponse:
    return JSONResponse({"error": message, **details}, status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, OrderError)
    return _answer(STATUS[type(error)], str(error))


async def _not_understood(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    problems = [
        {"field": ".".join(map(str, problem["loc"])), "problem": problem["msg"]}
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    summary = "; ".join(f"{p['field'] or 'body'}: {p['problem']}" for p in problems)
    return _answer(422, f"The request cannot be understood. {summary}", problems=problems)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, error.detail)


async def _unavailable(_: Request, __: Exception) -> Response:
    return _answer(
        503,
        "The order database does not answer. Try again later; after a change that was cut off, look first "
        "whether it was made.",
    )


async def _not_migrated(_: Request, __: Exception) -> Response:
    return _answer(503, "The order database lacks a table or column; start the service with --migrate.")


app = Starlette(
    routes=[
        Route("/orders", place, methods=["POST"]),
        Route("/orders/{order_id}", show, methods=["GET"]),
        Route("/orders/{order_id}", change, methods=["PATCH"]),
        Route("/orders/{order_id}/cancel", cancel, methods=["POST"]),
        Route("/health", health),
    ],
    exception_handlers={
        OrderError: _refused,
        ValidationError: _not_understood,
        HTTPException: _http_error,
        OperationalError: _unavailable,
        ProgrammingError: _not_migrated,
        PoolTimeout: _unavailable,
    },
)
